"""Timeouts, and clients that are slow to send or to read, on real sockets."""

import contextlib

import numpy as np
from pytest import mark, param

from server.http.flow_control import HEAD_S, IDLE_S, LINGER_S, WRITE_S
from server.http.parser import HEAD_BYTES
from server.http.pipeline import PIPELINED
from server.protocols.body import BODY_S, PROGRESS_BYTES
from tests.server.fakes import FakeModel, signature
from tests.server.http_harness import (
    BODY,
    HttpHarness,
    begun,
    head,
    next_json,
    read_all,
    read_answer,
    request,
    until,
)

pytestmark = mark.usefixtures("still_answers")


@mark.parametrize(
    ("sent", "seconds", "slug"),
    [
        param(b"POST /pre", HEAD_S, "head_timeout", id="head"),
        param(head("host: t", "content-length: 100") + BODY, BODY_S, "body_timeout", id="body"),
    ],
)
def test_what_does_not_come_is_given_up(http_server, sent, seconds, slug):
    """A head or a body that stalls is 408 at its timeout, and its connection is closed."""
    with http_server.connect() as connection:
        connection.sendall(sent)
        http_server.running.wait(until(lambda: begun(http_server)))
        http_server.check_timeouts(seconds - 5)
        still = len(http_server.server.connections)
        http_server.check_timeouts(seconds + 5)
        status, headers, body = read_answer(connection)
        rest = connection.recv(1)

    assert still == 1
    assert (status, body["code"]) == (408, slug)
    assert headers["connection"] == "close"
    assert rest == b""


def test_a_body_that_goes_on_coming_is_waited_for():
    """A large body may take any time while it makes progress; a byte now and then is no progress."""
    half = b" " * (10 + PROGRESS_BYTES)
    whole = half + BODY
    http_server = HttpHarness()
    with http_server.connect() as slow, http_server.connect() as trickle:
        for connection in (slow, trickle):
            connection.sendall(head("host: t", f"content-length: {len(whole)}") + half[:10])
        http_server.running.wait(until(lambda: bodies(http_server) == [10, 10]))
        for connection in http_server.server.connections:
            connection._timeout.since -= BODY_S - 5
        slow.sendall(half[10:])
        trickle.sendall(b" ")
        http_server.running.wait(until(lambda: bodies(http_server) == [11, len(half)]))
        http_server.check_timeouts(10)
        given_up = read_answer(trickle)[2]
        slow.sendall(whole[len(half) :])
        answer = read_answer(slow)[2]
    http_server.close()

    assert given_up["code"] == "body_timeout"
    assert answer == {"predictions": [3.0]}


def bodies(http_server):
    """Return how much of each body has arrived, sorted."""
    return sorted(connection._parser.body._size for connection in http_server.server.connections)


def test_a_connection_that_idles_is_kept_longer_than_a_load_balancer_keeps_it(http_server):
    """A connection without requests is closed only after more than ten minutes."""
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY))
        next_json(connection)
        http_server.check_timeouts(600)
        connection.sendall(request("/predict", BODY))
        kept = next_json(connection)
        http_server.check_timeouts(IDLE_S + 5)
        closed = connection.recv(1)

    assert kept == {"predictions": [3.0]}
    assert closed == b""


def test_a_refused_client_that_never_stops_sending_is_cut_off(http_server):
    """After a refusal the rest of the request is discarded, for a moment, so that the client can read the response."""
    with http_server.connect() as connection:
        connection.sendall(head("host: t", "content-length: 99999999999"))
        status, _, _ = read_answer(connection)
        connection.sendall(b" " * 100_000)
        http_server.check_timeouts(LINGER_S + 5)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""

    assert status == 413


def test_what_was_never_read_is_counted(http_server):
    """Requests that are refused for their size or their slowness are counted like others."""
    requests = http_server.service.metrics.requests
    before = requests["none", "431"], requests["none", "408"], requests["vertex", "408"]

    http_server.send(b"POST /predict HTTP/1.1\r\nx-a: " + b"a" * (HEAD_BYTES + 1000))
    for sent in (b"POST /pre", request("/predict", BODY)[:-1]):
        with http_server.connect() as connection:
            connection.sendall(sent)
            http_server.running.wait(until(lambda: begun(http_server)))
            http_server.check_timeouts(BODY_S + 5)
            read_answer(connection)

    after = requests["none", "431"], requests["none", "408"], requests["vertex", "408"]
    assert after == tuple(count + 1 for count in before)


def test_a_client_that_does_not_read_is_answered_no_further():
    """Responses are not computed ahead for a client that does not read, and its connection is closed in the end."""
    model = FakeModel(
        signature=signature(["x:float32[_, 2]"], ["y:float32[_, 50000]"]),
        function=lambda x: (np.zeros((len(x), 50_000), np.float32),),
    )
    http_server = HttpHarness(model)
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY) * PIPELINED)
        http_server.running.wait(
            until(
                lambda: any(
                    c._flow.paused_since is not None for c in http_server.server.connections
                )
            )
        )
        http_server.post({"instances": [[3, 4]]})
        made = len(model.ran)
        for _ in range(5):
            http_server.post({"instances": [[3, 4]]})
        others = len(model.ran) - made
        http_server.check_timeouts(WRITE_S - 5)
        still = len(http_server.server.connections)
        http_server.check_timeouts(WRITE_S + 5)
        http_server.running.wait(until(lambda: not http_server.server.connections))

    http_server.close()
    assert others == 5
    assert still == 1
    assert http_server.service.memory.size == 0


def test_a_client_that_reads_slowly_gets_all_of_its_answer():
    """A client may take any time to read a response, as long as it reads."""
    size = 4_000_000
    model = FakeModel(
        signature=signature(["x:float32[_, 2]"], [f"y:float32[_, {size}]"]),
        function=lambda x: (np.zeros((len(x), size), np.float32),),
    )
    http_server = HttpHarness(model)
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY, "connection: close\r\n"))
        http_server.running.wait(until(lambda: blocked(http_server)))
        read = 0
        while read < size // 2:
            read += len(connection.recv(1 << 20))
        http_server.running.wait(until(lambda: blocked(http_server) < 2 * size))
        for open_ in http_server.server.connections:
            open_._flow.paused_since -= WRITE_S - 5
        http_server.check_timeouts(10)
        rest = read_all(connection)
    http_server.close()

    assert read + len(rest) > 4 * size


def blocked(http_server):
    """Return the bytes that wait for a client to read; none if it reads."""
    return sum(
        connection._transport.get_write_buffer_size()
        for connection in http_server.server.connections
        if connection._flow.paused_since is not None
    )
