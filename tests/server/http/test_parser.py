"""Parsing on real sockets: framing, limits, encodings, cached heads and offers to upgrade."""

import asyncio
import contextlib
import gzip
import zlib

from pytest import mark, param

from server.http.parser import HEAD_BYTES
from tests.server.http_harness import (
    BODY,
    LIMIT,
    body_of,
    chunked,
    head,
    next_answer,
    next_json,
    padded,
    read_all,
    read_answer,
    request,
    status_of,
)

pytestmark = mark.usefixtures("still_answers")


def test_a_body_in_chunks_is_read(http_server):
    """A body of unknown length is read to its end, single bytes and all."""
    chunks = [BODY[i : i + 1] for i in range(len(BODY))]
    lines = ("host: t", "transfer-encoding: chunked", "connection: close")

    assert body_of(http_server.send(head(*lines), chunked(*chunks))) == {"predictions": [3.0]}


def test_the_limit_of_a_body_is_exact(http_server):
    """A body of exactly the limit is read; one byte more is 413."""
    close = "connection: close\r\n"
    fits = http_server.send(request("/predict", padded(LIMIT), close))
    too_large = http_server.send(request("/predict", padded(LIMIT + 1), close))

    assert status_of(fits) == 200
    assert status_of(too_large) == 413
    assert body_of(too_large)["error"] == f"body: expected at most {LIMIT} bytes, got {LIMIT + 1}"


def test_a_body_that_says_it_is_too_large_is_refused_unread(http_server):
    """A content-length beyond the limit is 413 before a byte of the body has come."""
    with http_server.connect() as connection:
        connection.sendall(head("host: t", "content-length: 99999999999"))
        status, _, body = read_answer(connection)

    assert (status, body["code"]) == (413, "too_large")


async def received(http_server, size):
    """Return the parts of a body that is being received, once it has this size."""
    while True:
        for connection in http_server.server.connections:
            if sum(map(len, connection._parser.body.parts)) == size:
                return list(connection._parser.body.parts)
        await asyncio.sleep(0)


def test_tiny_chunks_take_no_more_than_they_hold(http_server):
    """A body in chunks of two bytes is kept in a few buffers, not in one each."""
    sent = LIMIT // 2 * 2
    with http_server.connect() as connection:
        connection.sendall(head("host: t", "transfer-encoding: chunked"))
        connection.sendall(b"2\r\n  \r\n" * (sent // 2))
        parts = http_server.running.wait(received(http_server, sent))

    assert len(parts) <= 2


def test_a_large_head_is_refused_in_whatever_pieces_it_comes(http_server):
    """A head has the same limit, whether its end has arrived already or not."""
    with http_server.connect() as connection:
        connection.sendall(head("host: t", f"x-large: {'x' * 70_000}"))
        status, _, body = read_answer(connection)

    assert (status, body["code"]) == (431, "headers_too_large")


def test_chunks_beyond_the_limit_are_refused_not_cut(http_server):
    """A body in chunks that grows too large is 413, however small its chunks."""
    lines = ("host: t", "transfer-encoding: chunked", "connection: close")
    answer = http_server.send(head(*lines), chunked(*[b" " * 100] * (LIMIT // 100 + 1)))

    assert status_of(answer) == 413


def test_a_compressed_body_is_read(http_server):
    """gzip and deflate bodies are decompressed."""
    for name, data in (("gzip", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))):
        answer = http_server.send(
            request("/predict", data, f"content-encoding: {name}\r\nconnection: close\r\n")
        )
        assert body_of(answer) == {"predictions": [3.0]}


def test_a_bomb_is_refused_by_what_it_becomes(http_server):
    """A compressed body counts decompressed, and is decompressed no further than that."""
    bomb = gzip.compress(b" " * 1_000_000)
    assert len(bomb) < LIMIT

    answer = http_server.send(
        request("/predict", bomb, "content-encoding: gzip\r\nconnection: close\r\n")
    )

    assert status_of(answer) == 413
    assert (
        body_of(answer)["error"] == f"body: expected at most {LIMIT} bytes decompressed, got more"
    )


@mark.parametrize(
    ("data", "text"),
    [
        param(b"not gzip", "body: expected gzip, got ", id="magic"),
        param(gzip.compress(BODY)[:-4], "body: expected one whole gzip stream", id="cut"),
        param(gzip.compress(BODY) + b"x", "body: expected one whole gzip stream", id="more"),
    ],
)
def test_a_body_that_is_not_what_its_encoding_says_is_400(http_server, data, text):
    """A body that cannot be decompressed, or not to its end, is refused."""
    answer = http_server.send(
        request("/predict", data, "content-encoding: gzip\r\nconnection: close\r\n")
    )

    assert status_of(answer) == 400
    assert body_of(answer)["error"].startswith(text)


CROOKED = [
    param((head("host: t", "content-length: 10", "content-length: 23"), BODY), id="two-lengths"),
    param((head("host: t", "content-length: -1"), BODY), id="negative-length"),
    param((head("host: t", "content-length: abc"), BODY), id="length-of-letters"),
    param((head("host: t", "host: u", "content-length: 23"), BODY), id="two-hosts"),
    param(
        (head("host: t", "content-type: application/json", "content-type: text/plain", "content-length: 23"), BODY),
        id="two-types",
    ),
    param((head("host: t", "x-a: b\0c", "content-length: 23"), BODY), id="nul-in-a-header"),
    param((head("host: t", "content-length : 23"), BODY), id="space-before-colon"),
    param((b"NONSENSE\r\n\r\n",), id="no-request-line"),
    param((request("/predict", BODY, method="BREW"),), id="no-such-method"),
    param((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",), id="tls"),
    param((head("host: t", "transfer-encoding: chunked"), b"zz\r\n", BODY), id="chunk-size"),
    param((head("host: t", "transfer-encoding: chunked"), b"ffffffffffffffffff\r\n"), id="huge-chunk"),
    param((head("content-length: 23"), BODY), id="no-host"),
    param(
        (head("host: t", "content-encoding: gzip", "content-encoding: deflate", "content-length: 23"), BODY),
        id="two-encodings",
    ),
    param((request("/predict", BODY).replace(b"HTTP/1.1", b"HTTP/2.0"),), id="http-2"),
    param(
        (head("host: t", "transfer-encoding: chunked").replace(b"/1.1", b"/1.0"), chunked(BODY)),
        id="chunks-in-http-1.0",
    ),
    param((head("host: t", method="CONNECT", path="evil:443"), BODY), id="connect"),
]  # fmt: skip


@mark.parametrize("parts", CROOKED)
def test_crooked_requests_are_refused(http_server, parts):
    """An ambiguous request is not processed: it gets 400, or no response and a closed connection."""
    answer = http_server.send(*parts)

    assert status_of(answer) in (400, None)
    assert answer.count(b"HTTP/1.1") <= 1


NINES = "9" * 5000


@mark.parametrize("path", ["/predict", "/health", "/nothing"])
@mark.parametrize(
    ("lines", "text"),
    [
        param(
            (f"host: t:{NINES}",), f"host: expected a host, or host:port, got 't:{NINES[:98]}'", id="port"
        ),
        param(
            ("host: t", f"content-length: {'0' * 5000}2"),
            f"content-length: expected a number of bytes, got '{'0' * 100}'",
            id="length",
        ),
    ],
)  # fmt: skip
def test_a_number_of_more_digits_than_any_is_400(http_server, caplog, path, lines, text):
    """Python reads no number of so many digits; the request is refused, and it is no error of the server."""
    answer = http_server.send(head(*lines, path=path) + b"{}")

    assert status_of(answer) == 400
    assert body_of(answer)["error"] == text
    assert caplog.messages == []


def test_a_target_with_a_port_of_more_digits_than_any_is_400(http_server, caplog):
    """The port of a URL is read as that of a Host is."""
    answer = http_server.send(head("host: t", path=f"http://t:{NINES}/health", method="GET"))

    assert status_of(answer) == 400
    assert caplog.messages == []


def test_white_space_around_a_header_is_no_part_of_it(http_server):
    """RFC 9110 section 5.5: spaces and tabs before and behind a value are left out."""
    space = " \t \t"
    lines = ("host", "t"), ("content-type", "application/json"), ("content-encoding", "identity")
    spaced = (f"{name}:{space}{value}{space}" for name, value in lines)

    answer = http_server.send(
        head(*spaced, "connection: close", f"content-length: {len(BODY)}") + BODY
    )

    assert status_of(answer) == 200
    assert body_of(answer) == {"predictions": [3.0]}


def test_another_coding_than_chunks_is_not_passed_over(http_server):
    """A body in an unsupported content coding is 501, and never read as something else."""
    lines = ("host: t", "transfer-encoding: gzip, chunked")

    answer = http_server.send(head(*lines), chunked(BODY), request("/predict", BODY))

    assert answer.count(b"HTTP/1.1") == 1
    assert status_of(answer) == 501


def test_a_head_behind_a_request_is_read_to_its_end(http_server):
    """Bytes that equal a cached head are not matched in the middle of another head."""
    known = request("/predict", BODY)
    with http_server.connect() as connection:
        connection.sendall(known)
        first = next_json(connection)
        connection.sendall(known + b"POST /nothing HTTP/1.1\r\nx-a: ")
        second = next_json(connection)
        connection.sendall(known)
        third = next_json(connection)
        connection.sendall(known)
        fourth = next_json(connection)

    assert first == second == fourth == {"predictions": [3.0]}
    assert third["code"] == "not_found"


def test_what_one_client_sends_changes_nothing_for_another(http_server):
    """A head that arrived in pieces is never taken for its last piece."""
    usual = request("/predict", BODY, "x-usual: 1\r\n")
    with http_server.connect() as evil:
        evil.sendall(request("/predict", BODY) + b"POST /v2/models/fake/infer HTTP/1.1\r\nx-a: ")
        first = next_json(evil)
        evil.sendall(usual)
        second = next_json(evil)
    with http_server.connect() as other:
        other.sendall(usual)
        answer = next_json(other)

    assert first == answer == {"predictions": [3.0]}
    assert second["code"] == "invalid_argument"


@mark.parametrize(
    "part",
    [
        param(b"0\r\nx-a: " + b"a" * HEAD_BYTES, id="trailer"),
        param(b"0\r\n" + b"x-a: b\r\n" * 8192, id="trailers"),
        param(b"1;a=" + b"a" * HEAD_BYTES, id="extension"),
    ],
)
def test_what_frames_a_body_is_bounded(http_server, part):
    """Chunk extensions and trailers, which are ignored, have the limit of a head."""
    with http_server.connect() as connection:
        connection.sendall(head("host: t", "transfer-encoding: chunked") + b"1\r\n{\r\n")
        http_server.running.wait(received(http_server, 1))
        connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"a" * 500_000)
        answer = read_all(connection)

    assert status_of(answer) == 431
    assert body_of(answer)["code"] == "headers_too_large"


def test_a_length_beside_chunks_smuggles_nothing(http_server):
    """With both headers the chunks count, and the connection ends with the response."""
    both = head("host: t", "content-length: 5", "transfer-encoding: chunked")

    answer = http_server.send(both, chunked(BODY), request("/nothing", BODY))

    assert answer.count(b"HTTP/1.1") == 1
    assert status_of(answer) == 400 or b"connection: close" in answer


def test_a_body_cut_short_is_not_run(http_server):
    """A client that disconnects before its body is complete has made no request."""
    ran = len(http_server.model.ran)

    answer = http_server.send(head("host: t", "content-length: 100"), BODY, cut=True)
    in_chunks = http_server.send(
        head("host: t", "transfer-encoding: chunked"), b"%x\r\n%s\r\n" % (9, BODY[:9]), cut=True
    )

    assert body_of(answer)["error"] == "body: expected all of it, got less"
    assert body_of(answer)["code"] == "incomplete_body"
    assert body_of(in_chunks)["error"] == "body: expected all of it, got less"
    assert len(http_server.model.ran) == ran


def test_an_idle_connection_holds_nothing_of_what_it_sent(http_server):
    """A request's memory is freed with its response: thousands of connections may be idle."""
    size = LIMIT - 1000
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY + b" " * size))
        next_answer(connection)
        (kept,) = http_server.server.connections
        held = [
            value
            for owner in (kept, kept._parser)
            for value in vars(owner).values()
            if isinstance(value, bytes)
        ]

    assert sum(map(len, held)) < size


def test_headers_without_end_are_refused(http_server):
    """A head beyond its limit is 431, complete or not."""
    answer = http_server.send(b"POST /predict HTTP/1.1\r\nx-a: " + b"a" * (HEAD_BYTES + 1000))

    assert status_of(answer) == 431
    assert body_of(answer)["code"] == "headers_too_large"


def test_an_offer_to_upgrade_is_passed_over(http_server):
    """Requests that offer an upgrade to HTTP/2 are answered in HTTP/1.1, on the same connection."""
    upgrade = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY, upgrade) + request("/predict", BODY))
        answers = [next_json(connection) for _ in range(2)]

    assert answers == [{"predictions": [3.0]}] * 2


def test_thousands_of_offers_at_once_are_passed_over(http_server, caplog):
    """Any number of requests with an upgrade offer in one piece are all read, without deep recursion."""
    offer = request("/predict", b"", "connection: upgrade\r\nupgrade: h2c\r\n")

    answers = http_server.send(offer * 2000, request("/predict", b"", "connection: close\r\n"))

    assert answers.count(b"HTTP/1.1 400") == 2001
    assert caplog.messages == []


def test_a_client_that_offers_to_upgrade_and_to_close_is_left(http_server):
    """`connection: close` beside an upgrade offer is honoured."""
    answer = http_server.send(
        request("/predict", BODY, "connection: close, upgrade\r\nupgrade: h2c\r\n")
    )

    assert body_of(answer) == {"predictions": [3.0]}
    assert b"connection: close" in answer
