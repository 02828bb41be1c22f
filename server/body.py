"""Which bodies are read, how much of them, and what they say they are."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from server.errors import IncompleteBody, MalformedRequest, TooLarge, UnsupportedMedia

# For so many more bytes of a body. Someone far away with a large one takes minutes, and who
# sends a byte now and then is not waited for.
BODY_S = 60.0
PROGRESS_BYTES = 1 << 16
# Without a type, and with the one that `curl -d` sends unasked, a body is taken for JSON.
_JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")
_BINARY = "application/octet-stream"
# The type of Triton's binary requests on Vertex AI, which passes no header of a client's on.
_VERTEX_BINARY = "application/vnd.vertex-ai-triton.binary+json"
_MOST_DIGITS = 18
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
# RFC 9110 section 8.4.1.3: another name for it.
_ALIASES = {"x-gzip": "gzip"}
# Of a gzip stream. An empty one is 20 bytes, and to read it takes as long as to read 10 kB.
MEMBERS = 10_000
# The first piece of a member; behind its end there is no more than a piece to be read again.
_PIECE_BYTES = 1 << 8
_LARGEST_PIECE_BYTES = 1 << 20

# Gives the first header of a (lower case) name, or None.
Header = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The largest bodies that are read, in bytes after decompression."""

    json_bytes: int
    binary_bytes: int


class Announced(NamedTuple):
    """What the headers say of a body.

    Attributes:
      length: its bytes on the wire; None where it comes in chunks.
      limit: the most that is read.
      json_bytes: of JSON that it begins with, binary tensors behind them; None if it is
        JSON as a whole.
      encoding: gzip, deflate, or empty.
    """

    length: int | None
    limit: int
    json_bytes: int | None
    encoding: str


def check_headers(header: Header, limits: Limits) -> Announced:
    """Refuse a body by its headers, before it is read.

    Args:
      header: gives a header by its lower-case name.
      limits: by the kind of body.

    Raises:
      UnsupportedMedia: a type or an encoding that is not read.
      MalformedRequest: a length is no number.
      TooLarge: more bytes than are read.
    """
    encoding = header("content-encoding") or ""
    if encoding:
        encoding = encoding.strip().lower()
        encoding = _ALIASES.get(encoding, encoding)
    if encoding and encoding not in _WINDOW_BITS:
        if encoding != "identity":
            raise UnsupportedMedia(
                f"content-encoding: expected gzip or deflate, got {encoding[:100]!r}"
            )
        encoding = ""
    json_bytes = _json_bytes(header)
    limit = limits.json_bytes if json_bytes is None else limits.binary_bytes
    # Beyond what any body has it is no matter of size; whoever reads the body says so.
    if json_bytes is not None and limits.json_bytes < json_bytes <= limits.binary_bytes:
        raise TooLarge(
            f"body: expected at most {limits.json_bytes} bytes of JSON, got {json_bytes}"
        )
    length = header("content-length")
    if header("transfer-encoding") is not None:
        if length is not None:
            raise MalformedRequest("content-length: expected none beside transfer-encoding")
        return Announced(None, limit, json_bytes, encoding)
    if not length:
        return Announced(0, limit, json_bytes, encoding)
    announced = read_length(length)
    if announced > limit:
        raise TooLarge(f"body: expected at most {limit} bytes, got {announced}")
    return Announced(announced, limit, json_bytes, encoding)


def read_length(text: str) -> int:
    """Return how many bytes a content-length says.

    Raises:
      MalformedRequest: it is no such number, or larger than any body.
    """
    return _number("content-length", text)


def _json_bytes(header: Header) -> int | None:
    """Tell JSON from binary tensors; see `Announced.json_bytes`."""
    content_type = header("content-type")
    json_bytes = header("inference-header-content-length")
    if json_bytes is None and (content_type is None or content_type == "application/json"):
        return None
    media, *parameters = (part.strip() for part in (content_type or "").split(";"))
    media = media.lower()
    if json_bytes is not None:
        if media not in (_BINARY, *_JSON_TYPES):
            raise UnsupportedMedia(f"content-type: expected {_BINARY}, got {media[:100]!r}")
        return _number("inference-header-content-length", json_bytes)
    named = dict(_pair(parameter) for parameter in parameters)
    if media == _VERTEX_BINARY:
        return _number("json-header-size", named.get("json-header-size", ""))
    if media == _BINARY:
        raise UnsupportedMedia(
            f"content-type: expected inference-header-content-length with {_BINARY}, got none"
        )
    if media not in _JSON_TYPES:
        raise UnsupportedMedia(f"content-type: expected application/json, got {media[:100]!r}")
    charset = named.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8"):
        raise UnsupportedMedia(f"content-type: expected charset utf-8, got {charset[:100]!r}")
    return None


def _pair(parameter: str) -> tuple[str, str]:
    name, _, value = parameter.partition("=")
    return name.strip().lower(), value.strip(' "')


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise MalformedRequest(f"{name}: expected a number of bytes, got {text[:100]!r}")
    return int(text)


def check_length(body: bytes, announced: Announced) -> None:
    """Refuse a body that is shorter than announced or longer than the limit.

    Several servers hand a short body over as if it were whole.
    """
    if announced.length is not None and len(body) < announced.length:
        raise IncompleteBody(f"body: expected {announced.length} bytes, got {len(body)}")
    if len(body) > announced.limit:
        raise TooLarge(f"body: expected at most {announced.limit} bytes, got more")


def inflate(body: bytes, announced: Announced) -> bytes:
    """Decompress a body, if it is compressed, to no more than its limit.

    A body of gzip may have several members, one behind the other: RFC 1952 section 2.2.

    Raises:
      MalformedRequest: it is not compressed that way, not whole, or has something behind it.
      TooLarge: it becomes more than that, or has more than MEMBERS.
    """
    encoding = announced.encoding
    if not encoding:
        return body
    parts: list[bytes] = []
    at = size = members = 0
    while at < len(body) or not members:
        if members == MEMBERS:
            raise TooLarge(f"body: expected at most {MEMBERS} members of gzip, got more")
        if members and encoding != "gzip":
            raise MalformedRequest(f"body: expected one whole {encoding} stream")
        stream = zlib.decompressobj(_WINDOW_BITS[encoding])
        at, size = _member(stream, body, at, announced, parts, size)
        members += 1
    return b"".join(parts)


def _member(
    stream: "zlib._Decompress",
    body: bytes,
    at: int,
    announced: Announced,
    parts: list[bytes],
    size: int,
) -> tuple[int, int]:
    """Decompress one stream.

    Args:
      stream: decompresses it.
      body: holds it.
      at: where in the body it begins.
      announced: has its limit, and its encoding.
      parts: what comes of it is added to them.
      size: of the parts.

    Returns:
      Where it ends, and the size of the parts.
    """
    piece = _PIECE_BYTES
    while not stream.eof:
        given = body[at : at + piece]
        if not given:
            raise MalformedRequest(f"body: expected one whole {announced.encoding} stream")
        try:
            part = stream.decompress(given, announced.limit + 1 - size)
        except zlib.error as error:
            raise MalformedRequest(f"body: expected {announced.encoding}, got {error}") from None
        parts.append(part)
        size += len(part)
        if size > announced.limit:
            raise TooLarge(f"body: expected at most {announced.limit} bytes decompressed, got more")
        at += len(given) - len(stream.unused_data)
        piece = min(2 * piece, _LARGEST_PIECE_BYTES)
    return at, size


def read(stream: BinaryIO, announced: Announced) -> bytes:
    """Read a body whole; one of unknown length up to one byte beyond the limit, to tell.

    Werkzeug's own reading cuts a chunked body at its limit without a word.
    """
    parts: list[bytes] = []
    left = announced.limit + 1 if announced.length is None else announced.length
    while left > 0 and (part := stream.read(min(left, PROGRESS_BYTES))):
        parts.append(part)
        left -= len(part)
    body = b"".join(parts)
    check_length(body, announced)
    return inflate(body, announced)
