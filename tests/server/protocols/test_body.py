"""Which bodies are read, how many bytes of them, and as which content."""

import gzip
import io
import tracemalloc
import zlib

from pytest import mark, param, raises

from runtime.errors import MalformedRequest
from server.errors import TooLarge, UnsupportedMedia
from server.limits import BodyLimits
from server.protocols.body import MAX_MEMBERS, BodyInfo, check_headers, inflate, read

LIMITS = BodyLimits(json_bytes=100, binary_bytes=1000)
VERTEX = "application/vnd.vertex-ai-triton.binary+json"


def announced(**headers):
    """Check headers, named with underscores."""
    return check_headers({k.replace("_", "-"): v for k, v in headers.items()}.get, LIMITS)


@mark.parametrize(
    ("headers", "expected"),
    [
        param({}, BodyInfo(0, 100, None, ""), id="nothing"),
        param({"content_length": ""}, BodyInfo(0, 100, None, ""), id="empty-length"),
        param({"content_length": "100"}, BodyInfo(100, 100, None, ""), id="json"),
        param({"transfer_encoding": "chunked"}, BodyInfo(None, 100, None, ""), id="chunked"),
        param({"content_encoding": "identity"}, BodyInfo(0, 100, None, ""), id="identity"),
        param({"content_encoding": " GZip "}, BodyInfo(0, 100, None, "gzip"), id="gzip"),
        param(
            {"content_length": "1000", "inference_header_content_length": "7"},
            BodyInfo(1000, 1000, 7, ""),
            id="binary",
        ),
        param(
            {"content_length": "1000", "inference_header_content_length": "100"},
            BodyInfo(1000, 1000, 100, ""),
            id="binary-behind-the-most-json",
        ),
        param(
            {"content_length": "5", "inference_header_content_length": "1001"},
            BodyInfo(5, 1000, 1001, ""),
            id="more-json-than-any-body",
        ),
        param(
            {"content_type": f"{VERTEX};json-header-size=7"},
            BodyInfo(0, 1000, 7, ""),
            id="binary-on-vertex",
        ),
        param(
            {"content_type": f'{VERTEX.upper()} ; JSON-Header-Size="0"'},
            BodyInfo(0, 1000, 0, ""),
            id="binary-on-vertex-quoted",
        ),
        param(
            {
                "content_type": "application/octet-stream",
                "inference_header_content_length": "7",
            },
            BodyInfo(0, 1000, 7, ""),
            id="octets",
        ),
    ],
)
def test_headers_say_what_a_body_is(headers, expected):
    """Length, kind and encoding follow from the headers, and the limit from the kind."""
    assert announced(**headers) == expected


@mark.parametrize(
    ("headers", "error", "text"),
    [
        param({"content_length": "101"}, TooLarge, "body: expected at most 100 bytes, got 101", id="json-limit"),
        param({"content_length": "1001", "inference_header_content_length": "1"}, TooLarge, "body: expected at most 1000 bytes, got 1001", id="binary-limit"),
        param({"content_length": "500", "inference_header_content_length": "101"}, TooLarge, "body: expected at most 100 bytes of JSON, got 101", id="json-before-binary"),
        param({"content_type": f"{VERTEX};json-header-size=1000"}, TooLarge, "body: expected at most 100 bytes of JSON, got 1000", id="json-before-binary-on-vertex"),
        param({"content_length": "9" * 18}, TooLarge, f"body: expected at most 100 bytes, got {'9' * 18}", id="huge-length"),
        param({"content_length": "9" * 5000}, MalformedRequest, "content-length: expected a number of bytes, got '999", id="endless-length"),
        param({"content_length": "-1"}, MalformedRequest, "content-length: expected a number of bytes, got '-1'", id="negative"),
        param({"content_length": "1_0"}, MalformedRequest, "content-length: expected a number of bytes, got '1_0'", id="underscore"),
        param({"content_length": "\u0661"}, MalformedRequest, "content-length: expected a number of bytes", id="other-digits"),
        param({"content_length": "10, 10"}, MalformedRequest, "content-length: expected a number of bytes", id="twice"),
        param({"content_length": "1", "transfer_encoding": "chunked"}, MalformedRequest, "content-length: expected none beside transfer-encoding", id="both"),
        param({"content_encoding": "br"}, UnsupportedMedia, "content-encoding: expected gzip or deflate, got 'br'", id="brotli"),
        param({"content_encoding": "gzip, gzip"}, UnsupportedMedia, "content-encoding: expected gzip or deflate, got 'gzip, gzip'", id="gzip-twice"),
        param({"content_type": "text/plain"}, UnsupportedMedia, "content-type: expected application/json, got 'text/plain'", id="text"),
        param({"content_type": "multipart/form-data; boundary=x"}, UnsupportedMedia, "content-type: expected application/json, got 'multipart/form-data'", id="multipart"),
        param({"content_type": "application/x-pickle"}, UnsupportedMedia, "content-type: expected application/json, got 'application/x-pickle'", id="pickle"),
        param({"content_type": "multipart/form-data", "inference_header_content_length": "1"}, UnsupportedMedia, "content-type: expected application/octet-stream", id="binary-multipart"),
        param({"content_type": "application/json; charset=utf-16"}, UnsupportedMedia, "content-type: expected charset utf-8, got 'utf-16'", id="charset"),
        param({"content_type": "application/octet-stream"}, UnsupportedMedia, "content-type: expected inference-header-content-length with application/octet-stream, got none", id="octets-alone"),
        param({"content_type": VERTEX}, MalformedRequest, "json-header-size: expected a number of bytes, got ''", id="no-size"),
        param({"content_type": f"{VERTEX};json-header-size=-1"}, MalformedRequest, "json-header-size: expected a number of bytes, got '-1'", id="negative-size"),
        *(param({"inference_header_content_length": text}, MalformedRequest, f"inference-header-content-length: expected a number of bytes, got {text[:100]!r}", id=f"header-length-{text[:6]}")
          for text in ("", "-1", "NaN", "1.0", "1e2", "0x1", "1, 1", " 1", "9" * 19, "9" * 5000)),
    ],
)  # fmt: skip
def test_headers_that_do_not_fit_are_refused_unread(headers, error, text):
    """A type, a length or an encoding that is not read is refused before any byte is."""
    with raises(error) as caught:
        announced(**headers)

    assert type(caught.value) is error
    assert str(caught.value).startswith(text)
    assert len(str(caught.value)) < 250


@mark.parametrize("length", [0, 1, 100])
def test_an_announced_body_is_read_to_its_end_and_no_further(length):
    """Bytes behind a body belong to the next request."""
    stream = io.BytesIO(b"a" * length + b"next")

    assert read(stream, BodyInfo(length, 100, None, "")) == b"a" * length
    assert stream.read() == b"next"


@mark.parametrize("length", [0, 99, 100])
def test_a_chunked_body_is_read_to_its_end(length):
    """A body of unknown length is read whole, up to exactly the limit."""
    assert read(io.BytesIO(b"a" * length), BodyInfo(None, 100, None, "")) == b"a" * length


def test_a_chunked_body_beyond_the_limit_is_read_one_byte_beyond_it():
    """No more is read than needed to detect that a body is too large."""
    stream = io.BytesIO(b"a" * 1000)

    with raises(TooLarge) as caught:
        read(stream, BodyInfo(None, 100, None, ""))

    assert str(caught.value) == "body: expected at most 100 bytes, got more"
    assert stream.tell() == 101


def test_a_body_that_ends_early_is_refused():
    """The body of a client that disconnects in the middle is not processed."""
    with raises(MalformedRequest) as caught:
        read(io.BytesIO(b"a" * 9), BodyInfo(10, 100, None, ""))

    assert str(caught.value) == "body: expected 10 bytes, got 9"


class Drops:
    """A stream that returns one byte at a time."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def read(self, _):
        """Return the next byte."""
        return self._data.read(1)


def test_a_body_in_many_small_pieces_is_read():
    """How a body is cut into pieces on its way does not matter."""
    assert read(Drops(b"a" * 90), BodyInfo(None, 100, None, "")) == b"a" * 90


PACKERS = {"gzip": gzip.compress, "deflate": zlib.compress}


@mark.parametrize("encoding", PACKERS)
def test_a_compressed_body_is_opened(encoding):
    """The limit is that of the opened body, exactly."""
    fits = PACKERS[encoding](b"a" * 100)
    too_large = PACKERS[encoding](b"a" * 101)

    assert inflate(fits, BodyInfo(len(fits), 100, None, encoding)) == b"a" * 100
    with raises(TooLarge) as caught:
        inflate(too_large, BodyInfo(len(too_large), 100, None, encoding))
    assert str(caught.value) == "body: expected at most 100 bytes decompressed, got more"


@mark.parametrize("encoding", PACKERS)
def test_a_bomb_is_opened_no_further_than_the_limit(encoding):
    """A small body that would be a gigabyte takes no more memory than the limit."""
    bomb = PACKERS[encoding](bytes(1 << 24))
    tracemalloc.start()

    with raises(TooLarge):
        inflate(bomb, BodyInfo(len(bomb), 1 << 16, None, encoding))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20


@mark.parametrize("encoding", PACKERS)
@mark.parametrize(
    "spoil",
    [
        param(lambda _: b"", id="nothing"),
        param(lambda packed: packed[:-1], id="cut"),
        param(lambda packed: packed + b"x", id="junk-behind"),
        param(lambda packed: packed + packed[:-1], id="second-cut"),
        param(lambda packed: packed + bytes(512), id="zeros-behind"),
        param(lambda packed: packed + packed + b"x", id="junk-behind-two"),
        param(lambda _: b"plain text", id="not-compressed"),
        param(lambda packed: packed[:-4] + bytes(4), id="checksum"),
    ],
)
def test_a_stream_that_is_not_one_whole_is_refused(encoding, spoil):
    """Compressed data that is cut off, has trailing bytes or is not compressed is refused."""
    packed = spoil(PACKERS[encoding](b"text"))

    with raises(MalformedRequest, match=r"^body: expected "):
        inflate(packed, BodyInfo(len(packed), 100, None, encoding))


def packed_as(encoding, packed, limit):
    """Return the headers of a compressed body."""
    headers = {"content-encoding": encoding, "content-length": str(len(packed))}
    return check_headers(headers.get, BodyLimits(1 << 20, 1 << 20))._replace(limit=limit)


@mark.parametrize("encoding", ["gzip", "x-gzip", "X-GZip"])
@mark.parametrize("texts", [(b"a", b"b"), (b"", b"ab", b""), (b"a" * 70_000, b"b" * 300_000)])
def test_the_members_of_gzip_are_one_body(encoding, texts):
    """What several gzip streams hold, one behind the other, is read as one, to the same limit."""
    packed = b"".join(map(gzip.compress, texts))
    size = sum(map(len, texts))

    assert inflate(packed, packed_as(encoding, packed, size)) == b"".join(texts)
    with raises(TooLarge) as caught:
        inflate(packed, BodyInfo(len(packed), size - 1, None, "gzip"))
    assert str(caught.value) == f"body: expected at most {size - 1} bytes decompressed, got more"


def test_deflate_has_one_stream():
    """Only gzip has members."""
    packed = zlib.compress(b"text")

    with raises(MalformedRequest) as caught:
        inflate(packed + packed, BodyInfo(2 * len(packed), 100, None, "deflate"))

    assert str(caught.value) == "body: expected one whole deflate stream"


def test_a_bomb_of_many_members_is_opened_no_further():
    """Many members are refused, whether they exceed the limit together or are thousands of empty ones."""
    large, empty = gzip.compress(bytes(1 << 15)), gzip.compress(b"")

    with raises(TooLarge) as grown:
        inflate(large * 1000, BodyInfo(None, 1 << 16, None, "gzip"))
    with raises(TooLarge) as many:
        inflate(empty * (MAX_MEMBERS + 1), BodyInfo(None, 1 << 16, None, "gzip"))

    assert str(grown.value) == "body: expected at most 65536 bytes decompressed, got more"
    assert str(many.value) == f"body: expected at most {MAX_MEMBERS} members of gzip, got more"
    assert inflate(empty * MAX_MEMBERS, BodyInfo(None, 1, None, "gzip")) == b""


def test_one_encoding_is_not_taken_for_another():
    """Gzip is not deflate."""
    packed = gzip.compress(b"text")

    with raises(MalformedRequest, match="body: expected deflate, got "):
        inflate(packed, BodyInfo(len(packed), 100, None, "deflate"))


def test_a_body_can_be_one_text():
    """Plain text in UTF-8 is accepted where a route and its model accept it, and JSON there as well."""
    limits = BodyLimits(100, 1000)

    def info(content_type):
        headers = {"content-type": content_type, "content-length": "3"}
        return check_headers(headers.get, limits, ("text/plain",))

    assert info("text/plain").raw_type
    assert info("Text/Plain; charset=UTF-8").raw_type
    assert not info("application/json").raw_type
    with raises(UnsupportedMedia, match=r"^content-type: expected charset utf-8, got 'latin-1'$"):
        info("text/plain; charset=latin-1")
