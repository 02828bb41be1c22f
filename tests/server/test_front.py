"""The front on raw sockets: what comes in crooked is refused, and what is good goes on."""

import asyncio
import contextlib
import gzip
import json
import socket
import zlib

import numpy as np
from pytest import fixture, mark, param, raises

from server.body import BODY_S, PROGRESS_BYTES
from server.http_connection import (
    HEAD_BYTES,
    HEAD_S,
    IDLE_S,
    LINGER_S,
    PIPELINED,
    WRITE_S,
)
from tests.server.fakes import FakeModel, Gate, signature
from tests.server.front import Entrance, read_all, read_answer, request, reset

LIMIT = 5000
BODY = b'{"instances": [[1, 2]]}'


@fixture(scope="module")
def entrance():
    """A front with small limits."""
    entrance = Entrance(max_json_bytes=LIMIT, max_body_bytes=2 * LIMIT)
    yield entrance
    entrance.close()


@fixture(autouse=True)
def _still_answers(entrance):
    """After every test a good request gets its answer."""
    yield
    assert entrance.ask((3, 4)) == [7.0]


def status_of(answer):
    """Give the status of a raw answer; None where there is none."""
    return int(answer.split()[1]) if answer else None


def body_of(answer):
    """Give the body of a raw answer that is not chunked."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def head(*lines, path="/predict", method="POST"):
    """Write the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


def chunked(*chunks):
    """Write a body in chunks, the last one included."""
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")]
    return b"".join(parts)


def test_a_prediction_is_answered_on_the_loop(entrance):
    """A good request gets its prediction."""
    status, headers, body = entrance.post({"instances": [[1, 2]]})

    assert (status, body) == (200, {"predictions": [3.0]})
    assert headers["content-type"] == "application/json"


def test_several_requests_come_through_one_connection(entrance):
    """A connection is kept, and pipelined requests are answered in order."""
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY) * 3)
        answers = [read_answer_unbuffered(connection) for _ in range(3)]

    assert answers == [{"predictions": [3.0]}] * 3


def read_answer_unbuffered(connection):
    """Read exactly one answer; give its body."""
    return next_answer(connection)[1]


def next_answer(connection):
    """Read exactly one answer; give its head, in lower case, and its body."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += connection.recv(1)
    length = int(raw.lower().split(b"content-length:")[1].split()[0])
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return raw.lower(), json.loads(body)


def test_a_body_in_chunks_is_read(entrance):
    """A body of unknown length is read to its end, single bytes and all."""
    chunks = [BODY[i : i + 1] for i in range(len(BODY))]
    lines = ("host: t", "transfer-encoding: chunked", "connection: close")

    assert body_of(entrance.send(head(*lines), chunked(*chunks))) == {"predictions": [3.0]}


def padded(length):
    """Make a legal body of this many bytes."""
    return BODY + b" " * (length - len(BODY))


def test_the_limit_of_a_body_is_exact(entrance):
    """A body of exactly the limit is read; one byte more is 413."""
    close = "connection: close\r\n"
    fits = entrance.send(request("/predict", padded(LIMIT), close))
    too_large = entrance.send(request("/predict", padded(LIMIT + 1), close))

    assert status_of(fits) == 200
    assert status_of(too_large) == 413
    assert body_of(too_large)["error"] == f"body: expected at most {LIMIT} bytes, got {LIMIT + 1}"


def test_a_body_that_says_it_is_too_large_is_refused_unread(entrance):
    """A content-length beyond the limit is 413 before a byte of the body has come."""
    with entrance.connect() as connection:
        connection.sendall(head("host: t", "content-length: 99999999999"))
        status, _, body = read_answer(connection)

    assert (status, body["code"]) == (413, "too_large")


async def came(entrance, size):
    """Give the parts that a connection keeps of a body, once it has so many bytes of it."""
    while True:
        for connection in entrance.server.connections:
            if sum(map(len, connection._body.parts)) == size:
                return list(connection._body.parts)
        await asyncio.sleep(0)


def test_tiny_chunks_take_no_more_than_they_hold(entrance):
    """A body in chunks of two bytes is kept in a few pieces, not in one apiece."""
    sent = LIMIT // 2 * 2
    with entrance.connect() as connection:
        connection.sendall(head("host: t", "transfer-encoding: chunked"))
        connection.sendall(b"2\r\n  \r\n" * (sent // 2))
        parts = entrance.running.wait(came(entrance, sent))

    assert len(parts) <= 2


def test_a_large_head_is_refused_in_whatever_pieces_it_comes(entrance):
    """Whether its end is there already or not, a head has the same limit."""
    with entrance.connect() as connection:
        connection.sendall(head("host: t", f"x-large: {'x' * 70_000}"))
        status, _, body = read_answer(connection)

    assert (status, body["code"]) == (431, "headers_too_large")


def test_chunks_beyond_the_limit_are_refused_not_cut(entrance):
    """A body in chunks that grows too large is 413, however small its chunks."""
    lines = ("host: t", "transfer-encoding: chunked", "connection: close")
    answer = entrance.send(head(*lines), chunked(*[b" " * 100] * (LIMIT // 100 + 1)))

    assert status_of(answer) == 413


def test_a_compressed_body_is_read(entrance):
    """gzip and deflate bodies are decompressed."""
    for name, data in (("gzip", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))):
        answer = entrance.send(
            request("/predict", data, f"content-encoding: {name}\r\nconnection: close\r\n")
        )
        assert body_of(answer) == {"predictions": [3.0]}


def test_a_bomb_is_refused_by_what_it_becomes(entrance):
    """A compressed body counts decompressed, and is decompressed no further than that."""
    bomb = gzip.compress(b" " * 1_000_000)
    assert len(bomb) < LIMIT

    answer = entrance.send(
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
def test_a_body_that_is_not_what_its_encoding_says_is_400(entrance, data, text):
    """What does not decompress, or not whole, is refused."""
    answer = entrance.send(
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
def test_crooked_requests_are_refused(entrance, parts):
    """What could be read in two ways is read in none: 400, or no answer and a closed connection."""
    answer = entrance.send(*parts)

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
def test_a_number_of_more_digits_than_any_is_400(entrance, caplog, path, lines, text):
    """Python reads no number of so many digits; who sends one is refused, and no error of the server."""
    answer = entrance.send(head(*lines, path=path) + b"{}")

    assert status_of(answer) == 400
    assert body_of(answer)["error"] == text
    assert caplog.messages == []


def test_a_target_with_a_port_of_more_digits_than_any_is_400(entrance, caplog):
    """The port of a URL is read as that of a Host is."""
    answer = entrance.send(head("host: t", path=f"http://t:{NINES}/health", method="GET"))

    assert status_of(answer) == 400
    assert caplog.messages == []


def test_white_space_around_a_header_is_no_part_of_it(entrance):
    """RFC 9110 section 5.5: spaces and tabs before and behind a value are left out."""
    space = " \t \t"
    lines = ("host", "t"), ("content-type", "application/json"), ("content-encoding", "identity")
    spaced = (f"{name}:{space}{value}{space}" for name, value in lines)

    answer = entrance.send(
        head(*spaced, "connection: close", f"content-length: {len(BODY)}") + BODY
    )

    assert status_of(answer) == 200
    assert body_of(answer) == {"predictions": [3.0]}


def test_another_coding_than_chunks_is_not_passed_over(entrance):
    """A body in a coding that nobody here reads is 501, and not taken for what it is not."""
    lines = ("host: t", "transfer-encoding: gzip, chunked")

    answer = entrance.send(head(*lines), chunked(BODY), request("/predict", BODY))

    assert answer.count(b"HTTP/1.1") == 1
    assert status_of(answer) == 501


def test_a_head_behind_a_request_is_read_to_its_end(entrance):
    """What looks like a request that was seen before is none in the middle of another head."""
    known = request("/predict", BODY)
    with entrance.connect() as connection:
        connection.sendall(known)
        first = read_answer_unbuffered(connection)
        connection.sendall(known + b"POST /nothing HTTP/1.1\r\nx-a: ")
        second = read_answer_unbuffered(connection)
        connection.sendall(known)
        third = read_answer_unbuffered(connection)
        connection.sendall(known)
        fourth = read_answer_unbuffered(connection)

    assert first == second == fourth == {"predictions": [3.0]}
    assert third["code"] == "not_found"


def test_what_one_client_sends_changes_nothing_for_another(entrance):
    """A head that came in pieces is not taken for its last piece, by nobody."""
    usual = request("/predict", BODY, "x-usual: 1\r\n")
    with entrance.connect() as evil:
        evil.sendall(request("/predict", BODY) + b"POST /v2/models/fake/infer HTTP/1.1\r\nx-a: ")
        first = read_answer_unbuffered(evil)
        evil.sendall(usual)
        second = read_answer_unbuffered(evil)
    with entrance.connect() as other:
        other.sendall(usual)
        answer = read_answer_unbuffered(other)

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
def test_what_frames_a_body_is_bounded(entrance, part):
    """What comes beside a body's chunks, and would be kept by nobody, has the limit of a head."""
    with entrance.connect() as connection:
        connection.sendall(head("host: t", "transfer-encoding: chunked") + b"1\r\n{\r\n")
        entrance.running.wait(came(entrance, 1))
        connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"a" * 500_000)
        answer = read_all(connection)

    assert status_of(answer) == 431
    assert body_of(answer)["code"] == "headers_too_large"


def test_a_length_beside_chunks_smuggles_nothing(entrance):
    """Where both are there the chunks count, and the connection ends with the answer."""
    both = head("host: t", "content-length: 5", "transfer-encoding: chunked")

    answer = entrance.send(both, chunked(BODY), request("/nothing", BODY))

    assert answer.count(b"HTTP/1.1") == 1
    assert status_of(answer) == 400 or b"connection: close" in answer


def test_a_body_cut_short_is_not_run(entrance):
    """A client that goes before its body is whole has not asked anything."""
    ran = len(entrance.model.ran)

    answer = entrance.send(head("host: t", "content-length: 100"), BODY, cut=True)
    in_chunks = entrance.send(
        head("host: t", "transfer-encoding: chunked"), b"%x\r\n%s\r\n" % (9, BODY[:9]), cut=True
    )

    assert body_of(answer)["error"] == "body: expected all of it, got less"
    assert body_of(answer)["code"] == "incomplete_body"
    assert body_of(in_chunks)["error"] == "body: expected all of it, got less"
    assert len(entrance.model.ran) == ran


@mark.parametrize(
    ("sent", "seconds", "slug"),
    [
        param(b"POST /pre", HEAD_S, "head_timeout", id="head"),
        param(head("host: t", "content-length: 100") + BODY, BODY_S, "body_timeout", id="body"),
    ],
)
def test_what_does_not_come_is_given_up(entrance, sent, seconds, slug):
    """A head or a body that stalls is 408, once its time is over, and its connection is closed."""
    with entrance.connect() as connection:
        connection.sendall(sent)
        entrance.running.wait(until(lambda: begun(entrance)))
        entrance.look(seconds - 5)
        still = len(entrance.server.connections)
        entrance.look(seconds + 5)
        status, headers, body = read_answer(connection)
        rest = connection.recv(1)

    assert still == 1
    assert (status, body["code"]) == (408, slug)
    assert headers["connection"] == "close"
    assert rest == b""


def test_a_body_that_goes_on_coming_is_waited_for():
    """A large body may take any time, if only there is some progress; a byte now and then is none."""
    half = b" " * (10 + PROGRESS_BYTES)
    whole = half + BODY
    entrance = Entrance()
    with entrance.connect() as slow, entrance.connect() as trickle:
        for connection in (slow, trickle):
            connection.sendall(head("host: t", f"content-length: {len(whole)}") + half[:10])
        entrance.running.wait(until(lambda: bodies(entrance) == [10, 10]))
        for connection in entrance.server.connections:
            connection._since -= BODY_S - 5
        slow.sendall(half[10:])
        trickle.sendall(b" ")
        entrance.running.wait(until(lambda: bodies(entrance) == [11, len(half)]))
        entrance.look(10)
        given_up = read_answer(trickle)[2]
        slow.sendall(whole[len(half) :])
        answer = read_answer(slow)[2]
    entrance.close()

    assert given_up["code"] == "body_timeout"
    assert answer == {"predictions": [3.0]}


def bodies(entrance):
    """Give how much of each body has come, sorted."""
    return sorted(connection._body._size for connection in entrance.server.connections)


def test_an_idle_connection_holds_nothing_of_what_it_sent(entrance):
    """What came is let go of with its answer: thousands of connections may be idle."""
    size = LIMIT - 1000
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY + b" " * size))
        next_answer(connection)
        (kept,) = entrance.server.connections
        held = [value for value in vars(kept).values() if isinstance(value, bytes)]

    assert sum(map(len, held)) < size


def test_a_connection_that_idles_is_kept_longer_than_a_load_balancer_keeps_it(entrance):
    """A connection without requests is closed only after more than ten minutes."""
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY))
        read_answer_unbuffered(connection)
        entrance.look(600)
        connection.sendall(request("/predict", BODY))
        kept = read_answer_unbuffered(connection)
        entrance.look(IDLE_S + 5)
        closed = connection.recv(1)

    assert kept == {"predictions": [3.0]}
    assert closed == b""


def test_a_refused_client_that_never_stops_sending_is_cut_off(entrance):
    """After a refusal what still comes is thrown away, for a moment, so that it can be read."""
    with entrance.connect() as connection:
        connection.sendall(head("host: t", "content-length: 99999999999"))
        status, _, _ = read_answer(connection)
        connection.sendall(b" " * 100_000)
        entrance.look(LINGER_S + 5)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""

    assert status == 413


def test_headers_without_end_are_refused(entrance):
    """A head beyond its limit is 431, complete or not."""
    answer = entrance.send(b"POST /predict HTTP/1.1\r\nx-a: " + b"a" * (HEAD_BYTES + 1000))

    assert status_of(answer) == 431
    assert body_of(answer)["code"] == "headers_too_large"


def test_what_was_never_read_is_counted(entrance):
    """Requests that are refused for their size or their slowness are answers like others."""
    requests = entrance.service.metrics.requests
    before = requests["none", "431"], requests["none", "408"], requests["vertex", "408"]

    entrance.send(b"POST /predict HTTP/1.1\r\nx-a: " + b"a" * (HEAD_BYTES + 1000))
    for sent in (b"POST /pre", request("/predict", BODY)[:-1]):
        with entrance.connect() as connection:
            connection.sendall(sent)
            entrance.running.wait(until(lambda: begun(entrance)))
            entrance.look(BODY_S + 5)
            read_answer(connection)

    after = requests["none", "431"], requests["none", "408"], requests["vertex", "408"]
    assert after == tuple(count + 1 for count in before)


def test_a_client_that_waits_to_be_asked_is(entrance):
    """Expect: 100-continue is answered before the body, unless the body is refused."""
    with entrance.connect() as connection:
        connection.sendall(head("host: t", "expect: 100-continue", f"content-length: {len(BODY)}"))
        asked = connection.recv(25)
        connection.sendall(BODY)
        answer = read_answer_unbuffered(connection)
    refused = entrance.send(head("host: t", "expect: 100-continue", "content-length: 999999"))

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer == {"predictions": [3.0]}
    assert status_of(refused) == 413


def test_an_offer_to_upgrade_is_passed_over(entrance):
    """Clients that would rather speak HTTP/2 are answered in HTTP/1.1, on the same connection."""
    upgrade = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY, upgrade) + request("/predict", BODY))
        answers = [read_answer_unbuffered(connection) for _ in range(2)]

    assert answers == [{"predictions": [3.0]}] * 2


def test_thousands_of_offers_at_once_are_passed_over(entrance, caplog):
    """However many requests with an offer come in one piece, each is read, and none is too deep."""
    offer = request("/predict", b"", "connection: upgrade\r\nupgrade: h2c\r\n")

    answers = entrance.send(offer * 2000, request("/predict", b"", "connection: close\r\n"))

    assert answers.count(b"HTTP/1.1 400") == 2001
    assert caplog.messages == []


def test_a_client_that_offers_to_upgrade_and_to_close_is_left(entrance):
    """The end of a connection that is asked for beside an offer is kept to."""
    answer = entrance.send(
        request("/predict", BODY, "connection: close, upgrade\r\nupgrade: h2c\r\n")
    )

    assert body_of(answer) == {"predictions": [3.0]}
    assert b"connection: close" in answer


def test_http_1_0_is_told_that_its_connection_is_kept(entrance):
    """Such a client waits for the end of a connection that it is not told is kept."""
    old = request("/predict", BODY, "connection: keep-alive\r\n").replace(b"/1.1", b"/1.0")
    with entrance.connect() as connection:
        for _ in range(2):
            connection.sendall(old)
            head, body = next_answer(connection)

            assert b"\r\nconnection: keep-alive\r\n" in head
            assert body == {"predictions": [3.0]}

    new = entrance.send(
        request("/predict", BODY), request("/predict", BODY, "connection: close\r\n")
    )
    plain = entrance.send(request("/predict", BODY).replace(b"/1.1", b"/1.0"))

    assert new.count(b"\r\nconnection: ") == 1
    assert b"\r\nconnection: close\r\n" in plain


def test_http_1_0_is_not_asked_to_go_on(entrance):
    """A client of HTTP 1.0 knows nothing of interim answers."""
    old = request("/predict", BODY, "expect: 100-continue\r\n").replace(b"/1.1", b"/1.0")

    answer = entrance.send(old)

    assert answer.count(b"HTTP/1.1") == 1
    assert body_of(answer) == {"predictions": [3.0]}


def test_more_requests_than_a_client_may_have_ahead_are_refused(entrance):
    """Those within the limit are answered, in order, and then the refusal."""
    gate = Gate()
    entrance.model.before = gate
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY))
        entrance.running.wait(gate.reached())
        connection.sendall(request("/predict", BODY) * (PIPELINED + 1))
        entrance.running.wait(
            until(lambda: not any(c.reading for c in entrance.server.connections))
        )
        entrance.model.before = lambda _: None
        gate.open()
        answers = read_all(connection)

    assert answers.count(b"HTTP/1.1 200") == 1 + PIPELINED
    assert answers.count(b"HTTP/1.1 413") == 1


def test_an_answer_is_waited_for_though_what_follows_is_refused(entrance):
    """A good request gets its answer, however long that takes and whatever is wrong behind it."""
    gate = Gate()
    entrance.model.before = gate
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY) + b"no request\r\n\r\n")
        entrance.running.wait(gate.reached())
        entrance.running.wait(
            until(lambda: not any(c.reading for c in entrance.server.connections))
        )
        entrance.look(IDLE_S + LINGER_S)
        entrance.model.before = lambda _: None
        gate.open()
        answers = read_all(connection)

    assert answers.count(b"HTTP/1.1") == 2
    assert answers.index(b"HTTP/1.1 200") < answers.index(b"HTTP/1.1 400")


def test_what_is_not_all_there_does_not_hold_up_the_end():
    """A server that stops refuses requests that are still coming, and waits for no client to leave."""
    entrance = Entrance()
    with contextlib.ExitStack() as stack:
        refused, stalled, headless = (stack.enter_context(entrance.connect()) for _ in range(3))
        refused.sendall(request("/predict", BODY, "content-type: text/plain\r\n"))
        read_answer_unbuffered(refused)
        stalled.sendall(request("/predict", BODY)[:-1])
        headless.sendall(b"POST /pre")
        entrance.running.wait(until(lambda: len(entrance.server.connections) == 3))
        entrance.running.wait(until(lambda: not any(c.idle for c in entrance.server.connections)))
        entrance.service.stop()
        entrance.close()
        answers = [read_answer(connection) for connection in (stalled, headless)]

    assert [(status, body["code"]) for status, _, body in answers] == [(503, "draining")] * 2
    assert all(headers["connection"] == "close" for _, headers, _ in answers)


def test_a_client_that_sends_ahead_has_one_request_in_the_queue():
    """Whoever sends many requests at once over a connection holds nobody else up."""
    entrance, gate = Entrance(), Gate()
    entrance.model.before = gate
    with entrance.connect() as flood, entrance.connect() as other:
        flood.sendall(request("/predict", BODY) * PIPELINED)
        entrance.running.wait(gate.reached())
        other.sendall(request("/predict", b'{"instances": [[14, 14]]}'))
        entrance.running.wait(until(lambda: entrance.service.queued_rows == 1))
        gate.open(runs=2)
        answer = read_answer(other)[2]
        turns = [rows for _, rows in entrance.model.ran]
        entrance.model.before = lambda _: None
        gate.open(runs=2)
    entrance.close()

    assert answer == {"predictions": [28.0]}
    assert turns[0] == [[1.0, 2.0]]
    assert [14.0, 14.0] in turns[1]


def test_a_client_that_does_not_read_is_answered_no_further():
    """Answers that nobody takes are not made ahead, and their connection is cut off in the end."""
    model = FakeModel(
        signature=signature(["x:float32[_, 2]"], ["y:float32[_, 50000]"]),
        function=lambda x: (np.zeros((len(x), 50_000), np.float32),),
    )
    entrance = Entrance(model)
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY) * PIPELINED)
        entrance.running.wait(
            until(lambda: any(c._blocked_since is not None for c in entrance.server.connections))
        )
        entrance.post({"instances": [[3, 4]]})
        made = len(model.ran)
        for _ in range(5):
            entrance.post({"instances": [[3, 4]]})
        others = len(model.ran) - made
        entrance.look(WRITE_S - 5)
        still = len(entrance.server.connections)
        entrance.look(WRITE_S + 5)
        entrance.running.wait(until(lambda: not entrance.server.connections))

    entrance.close()
    assert others == 5
    assert still == 1
    assert entrance.service.held.size == 0


def test_a_client_that_reads_slowly_gets_all_of_its_answer():
    """An answer may take any time to be read, if only it is read."""
    size = 4_000_000
    model = FakeModel(
        signature=signature(["x:float32[_, 2]"], [f"y:float32[_, {size}]"]),
        function=lambda x: (np.zeros((len(x), size), np.float32),),
    )
    entrance = Entrance(model)
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY, "connection: close\r\n"))
        entrance.running.wait(until(lambda: blocked(entrance)))
        read = 0
        while read < size // 2:
            read += len(connection.recv(1 << 20))
        entrance.running.wait(until(lambda: blocked(entrance) < 2 * size))
        for open_ in entrance.server.connections:
            open_._blocked_since -= WRITE_S - 5
        entrance.look(10)
        rest = read_all(connection)
    entrance.close()

    assert read + len(rest) > 4 * size


def blocked(entrance):
    """Give the bytes that a client has still to read; none if it reads."""
    return sum(
        connection._transport.get_write_buffer_size()
        for connection in entrance.server.connections
        if connection._blocked_since is not None
    )


def test_nothing_behind_a_refusal_is_read(entrance):
    """Whatever comes in one piece with a request that is refused is thrown away with it."""
    bad = request("/predict", BODY, "content-type: text/plain\r\n")

    answers = entrance.send(bad + request("/predict", BODY) * 3)

    assert answers.count(b"HTTP/1.1") == 1
    assert status_of(answers) == 415


SPELLINGS = (
    "/predict?x=1",
    "/predict?",
    "http://t/predict",
    "HTTP://t:80/predict?x://y",
    "/v2/models/fake/infer?x",
    "/v1/models/fake:predict",
)


@mark.parametrize("target", SPELLINGS)
def test_inferences_take_no_thread_whatever_is_around_their_path(target):
    """While more of them wait than there are threads, the health check is answered; who goes is given up."""
    entrance, gate = Entrance(), Gate()
    entrance.model.before = gate
    body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
    body = body if "v2" in target else BODY
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(entrance.connect()) for _ in range(6)]
        for connection in waiting:
            connection.sendall(request(target, body))
        entrance.running.wait(gate.reached())
        entrance.running.wait(until(lambda: len(entrance.service._requests) == 6))
        healthy = entrance.send(head("host: t", "connection: close", path="/health", method="GET"))
        reset(waiting.pop())
        entrance.running.wait(until(lambda: len(entrance.service._requests) == 5))
        gate.open(6)
        statuses = {read_answer(connection)[0] for connection in waiting}
    entrance.close()

    assert status_of(healthy) == 200
    assert statuses == {200}


def test_a_target_that_names_the_host_is_its_path(entrance):
    """A server takes the form of a target that is meant for proxies as well."""
    lines = ("host: t", "connection: close")

    health = entrance.send(head(*lines, path="http://t/health", method="GET"))
    page = entrance.send(head(*lines, path="http://t", method="GET"))
    other = entrance.send(head(*lines, path="http://t/nothing", method="GET"))

    assert [status_of(answer) for answer in (health, page, other)] == [200, 200, 404]


def test_connections_beyond_the_most_wait_in_the_kernel(entrance):
    """A connection that is one too many is served once another has ended."""
    entrance.server._most, most = 2, entrance.server._most
    entrance.server._look_s, look_s = 0.01, entrance.server._look_s
    try:
        first, second = entrance.connect(), entrance.connect()
        entrance.running.wait(until(lambda: len(entrance.server.connections) == 2))
        with entrance.connect() as third:
            third.sendall(request("/predict", BODY))
            first.close()
            assert read_answer(third)[2] == {"predictions": [3.0]}
        second.close()
    finally:
        entrance.server._most, entrance.server._look_s = most, look_s


def test_silent_connections_hold_nobody_up(entrance):
    """Connections that send nothing, or half a request, leave the others be."""
    silent = [entrance.connect() for _ in range(200)]
    for connection in silent[::2]:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost:")

    assert entrance.ask() == [3.0]

    for connection in silent:
        connection.close()


def test_a_client_that_goes_takes_its_request_out_of_the_queue(entrance):
    """What waits for a client that has gone is not run, and is counted as canceled."""
    gate = Gate()
    entrance.model.before = gate
    first = entrance.connect()
    first.sendall(request("/predict", BODY))
    entrance.running.wait(gate.reached())
    waiting = entrance.connect()
    waiting.sendall(request("/predict", b'{"instances": [[13, 13]]}'))
    entrance.running.wait(until(lambda: entrance.service.queued_rows == 1))

    reset(waiting)
    entrance.running.wait(until(lambda: entrance.service.queued_rows == 0))
    entrance.model.before = lambda _: None
    gate.open()
    answer = read_answer(first)
    first.close()

    assert answer[2] == {"predictions": [3.0]}
    assert not any([13.0, 13.0] in rows for _, rows in entrance.model.ran)
    assert entrance.service.metrics.failures["canceled"] == 1


def begun(entrance):
    """Whether a request has begun to come, and is read."""
    return any(c.reading and not c.idle for c in entrance.server.connections)


async def until(true):
    """Let the loop run until something is true on it."""
    while not true():  # noqa: ASYNC110 (nothing tells when)
        await asyncio.sleep(0)


def test_a_client_that_goes_while_its_batch_runs_leaves_nothing_behind(entrance):
    """The answer of a batch that nobody waits for any more is dropped."""
    gate = Gate()
    entrance.model.before = gate
    gone = entrance.connect()
    gone.sendall(request("/predict", BODY))
    entrance.running.wait(gate.reached())

    reset(gone)
    entrance.running.wait(until(lambda: not entrance.service._requests))
    entrance.model.before = lambda _: None
    gate.open()


@mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "PATCH"])
def test_other_methods_are_refused_or_answered_without_a_body(entrance, method):
    """A method that a route lacks is 405 with what is allowed; OPTIONS says the same."""
    answer = entrance.send(request("/predict", b"", "connection: close\r\n", method))

    assert status_of(answer) == (200 if method == "OPTIONS" else 405)
    assert {b"OPTIONS", b"POST"} == set(allowed_of(answer))


def allowed_of(answer):
    """Give the methods that a raw answer says are allowed."""
    line = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"allow:"))
    return line.partition(b":")[2].replace(b" ", b"").split(b",")


def test_connection_close_is_said_while_draining(entrance):
    """Clients are told to connect anew, elsewhere, once the server drains."""

    async def drain(to):
        entrance.service.state = to

    ready = entrance.service.state
    entrance.service.drain()
    status, headers, body = entrance.post({"instances": [[1, 2]]})
    entrance.running.wait(drain(ready))

    assert (status, body) == (200, {"predictions": [3.0]})
    assert headers["connection"] == "close"


def test_many_clients_that_go_leave_nothing_behind(entrance):
    """After a storm of disconnects nothing is under way."""
    for _ in range(100):
        with entrance.connect() as connection:
            connection.sendall(request("/predict", BODY))
            reset(connection)

    entrance.ask()
    entrance.running.wait(until(lambda: not entrance.server.connections))


@mark.parametrize(
    "refused",
    [
        param("content-encoding: br", id="encoding"),
        param("content-type: text/html", id="type"),
        param("host: u", id="host"),
        param("x-large: " + "a" * HEAD_BYTES, id="head"),
    ],
)
@mark.parametrize(
    "behind",
    [
        b"\0\0",
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        request("/predict", BODY),
    ],
)
def test_a_request_is_refused_once(entrance, caplog, refused, behind):
    """Whatever comes behind a request that is refused at its head, it gets one answer and no log line."""
    counted = entrance.service.metrics.requests.total()

    answer = entrance.send(head("host: t", refused, "content-length: 2") + b"{}" + behind)

    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nconnection: close\r\n" in answer
    assert entrance.service.metrics.requests.total() == counted + 1
    assert caplog.messages == []


def test_nothing_behind_the_last_request_is_one(entrance, caplog):
    """What a client sends behind its `connection: close` is neither read nor refused, and resets nothing."""
    counted = entrance.service.metrics.requests.total()

    answer = entrance.send(
        request("/predict", BODY, "connection: close\r\n") + b"GARBAGE\r\n\r\n" * 1000
    )

    assert body_of(answer) == {"predictions": [3.0]}
    assert entrance.service.metrics.requests.total() == counted + 1
    assert caplog.messages == []


@mark.parametrize(
    ("parts", "count"),
    [
        param([request("/predict", BODY)], 1, id="one"),
        param([request("/predict", BODY) * 5], 5, id="pipelined"),
        param([head("host: t", "transfer-encoding: chunked") + chunked(BODY)], 1, id="chunks"),
        param([request("/predict", padded(LIMIT))], 1, id="large"),
        param([request("/predict", BODY), b"\r\n"], 1, id="empty-line"),
        param([request("/health", b"", method="GET")], 1, id="application"),
        param([request("/predict", BODY).replace(b"/1.1", b"/1.0")], 1, id="http-1.0"),
    ],
)
def test_a_client_that_sends_no_more_is_answered(entrance, parts, count):
    """Whoever closes its half of a connection gets all answers, and then the end."""
    answer = entrance.send(*parts, cut=True)

    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"HTTP/1.1") == count
    entrance.running.wait(until(lambda: not entrance.server.connections))


def test_a_client_that_sends_no_more_is_answered_however_long_that_takes(entrance):
    """It is told that the connection ends with the last answer, and with no other."""
    gate = Gate()
    entrance.model.before = gate
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY) * 2)
        connection.shutdown(socket.SHUT_WR)
        entrance.running.wait(gate.reached())
        entrance.running.wait(
            until(lambda: any(c._half_closed for c in entrance.server.connections))
        )
        entrance.look(IDLE_S)
        entrance.model.before = lambda _: None
        gate.open()
        answer = read_all(connection)

    assert [b"\r\nconnection: close" in part for part in answer.split(b"HTTP/1.1 200")[1:]] == [
        False,
        True,
    ]


def test_requests_of_a_client_that_sends_no_more_make_way(entrance):
    """Those that wait for an answer, and those behind them, may be dropped where the queue is full."""
    gate = Gate()
    entrance.model.before = gate
    deprioritized = entrance.service._deprioritized
    with entrance.connect() as connection:
        connection.sendall(request("/predict", BODY) * 2)
        entrance.running.wait(gate.reached())
        kept = dict(deprioritized)
        connection.shutdown(socket.SHUT_WR)
        entrance.running.wait(until(lambda: deprioritized))
        (first,) = deprioritized
        gate.open()
        entrance.running.wait(until(lambda: deprioritized and first not in deprioritized))
        entrance.model.before = lambda _: None
        gate.open()
        answer = read_all(connection)

    assert kept == {}
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert deprioritized == {}


def test_a_client_that_resets_after_its_end_is_given_up(entrance):
    """That a client has gone, and not only sends no more, is noticed when it resets the connection."""
    gate = Gate()
    entrance.model.before = gate
    canceled = entrance.service.metrics.failures["canceled"]
    connection = entrance.connect()
    connection.sendall(request("/predict", BODY))
    connection.shutdown(socket.SHUT_WR)
    entrance.running.wait(gate.reached())
    entrance.running.wait(until(lambda: any(c._half_closed for c in entrance.server.connections)))
    entrance.look(0)
    still = len(entrance.service._requests)

    reset(connection)
    entrance.running.wait(until(lambda: gone(entrance)))
    entrance.model.before = lambda _: None
    gate.open()

    assert still == 1
    assert entrance.service.metrics.failures["canceled"] == canceled + 1


def gone(entrance):
    """Have the server look at its connections, and tell whether there are none."""
    for connection in list(entrance.server.connections):
        connection.look(0.0)
    return not entrance.server.connections and not entrance.service._requests


@mark.parametrize("part", [b"POST /pre", request("/predict", BODY)[:-1]])
def test_half_a_request_of_a_client_that_sends_no_more_is_refused(entrance, part):
    """What cannot become a request any more is 400, behind the answer to what came before it."""
    answer = entrance.send(request("/predict", BODY) + part, cut=True)

    assert answer.count(b"HTTP/1.1") == 2
    assert answer.index(b"HTTP/1.1 200") < answer.index(b"HTTP/1.1 400")
    assert answer.endswith(b'"}')
    assert b": expected all of it, got less" in answer


def stopping(entrance, grace_s=30.0):
    """Have a server listen no more; ends when what was asked is answered and the grace is over."""
    return asyncio.run_coroutine_threadsafe(entrance.server.finish(grace_s), entrance.running.loop)


def test_who_is_connected_as_the_listener_closes_is_answered():
    """Connections that nobody has accepted, and idle ones, have their requests answered, and none is reset."""
    entrance, gate = Entrance(), Gate()
    entrance.model.before = gate
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(entrance.connect())
        idle = stack.enter_context(entrance.connect())
        held.sendall(request("/predict", BODY))
        entrance.running.wait(gate.reached())
        entrance.server._most = 0  # so that nobody else is accepted
        waiting = [stack.enter_context(entrance.connect()) for _ in range(20)]
        for connection in waiting:
            connection.sendall(request("/predict", BODY))
        entrance.service.drain()
        finished = stopping(entrance, grace_s=0.0)
        entrance.running.wait(until(lambda: len(entrance.service._requests) == 21))
        entrance.model.before = lambda _: None
        gate.open()
        finished.result(30)
        answers = [read_all(connection) for connection in (held, *waiting)]
        silent = read_all(idle)
    entrance.close()

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert all(b"\r\nconnection: close\r\n" in answer for answer in answers)
    assert silent == b""


def test_who_asks_while_a_server_stops_is_answered():
    """During the grace what was idle is answered, and so is all that was sent ahead and read."""
    entrance, gate = Entrance(), Gate()
    with entrance.connect() as idle, entrance.connect() as ahead:
        ahead.sendall(request("/predict", BODY))
        next_answer(ahead)
        entrance.model.before = gate
        ahead.sendall(request("/predict", BODY) * 4)
        entrance.running.wait(gate.reached())
        entrance.running.wait(
            until(lambda: any(len(c._waiting) == 3 for c in entrance.server.connections))
        )
        entrance.service.drain()
        finished = stopping(entrance)
        entrance.model.before = lambda _: None
        gate.open()
        answers = read_all(ahead)
        idle.sendall(request("/predict", BODY))
        late = read_all(idle)
        finished.cancel()
    entrance.close()

    assert answers.count(b"HTTP/1.1 200") == 4
    assert answers.count(b"\r\nconnection: close\r\n") == 1
    assert late.startswith(b"HTTP/1.1 200")


def test_who_connects_to_a_server_that_stops_is_refused():
    """After the listener has closed there is nobody to connect to."""
    entrance = Entrance()
    stopping(entrance, grace_s=0.0).result(30)

    with raises(ConnectionRefusedError):
        entrance.connect()

    entrance.close()
