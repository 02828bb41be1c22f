"""Pipelined requests, and clients that disconnect or send no more, on real sockets."""

import socket

from pytest import mark, param

from server.http.flow_control import IDLE_S, LINGER_S
from server.http.parser import HEAD_BYTES
from server.http.pipeline import PIPELINED
from tests.server.fakes import Gate
from tests.server.http_harness import (
    BODY,
    LIMIT,
    HttpHarness,
    body_of,
    chunked,
    head,
    next_json,
    padded,
    read_all,
    read_answer,
    request,
    reset,
    status_of,
    until,
)

pytestmark = mark.usefixtures("still_answers")


def test_several_requests_come_through_one_connection(http_server):
    """A connection is kept, and pipelined requests are answered in order."""
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY) * 3)
        answers = [next_json(connection) for _ in range(3)]

    assert answers == [{"predictions": [3.0]}] * 3


def test_more_requests_than_a_client_may_have_ahead_are_refused(http_server):
    """Those within the limit are answered, in order, and then the refusal."""
    gate = Gate()
    http_server.model.before = gate
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY))
        http_server.running.wait(gate.reached())
        connection.sendall(request("/predict", BODY) * (PIPELINED + 1))
        http_server.running.wait(
            until(lambda: not any(c.reading for c in http_server.server.connections))
        )
        http_server.model.before = lambda _: None
        gate.open()
        answers = read_all(connection)

    assert answers.count(b"HTTP/1.1 200") == 1 + PIPELINED
    assert answers.count(b"HTTP/1.1 413") == 1


def test_an_answer_is_waited_for_though_what_follows_is_refused(http_server):
    """A good request gets its response, however long that takes and whatever is wrong behind it."""
    gate = Gate()
    http_server.model.before = gate
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY) + b"no request\r\n\r\n")
        http_server.running.wait(gate.reached())
        http_server.running.wait(
            until(lambda: not any(c.reading for c in http_server.server.connections))
        )
        http_server.check_timeouts(IDLE_S + LINGER_S)
        http_server.model.before = lambda _: None
        gate.open()
        answers = read_all(connection)

    assert answers.count(b"HTTP/1.1") == 2
    assert answers.index(b"HTTP/1.1 200") < answers.index(b"HTTP/1.1 400")


def test_a_client_that_sends_ahead_has_one_request_in_the_queue():
    """Many pipelined requests on one connection delay no other connection."""
    http_server, gate = HttpHarness(), Gate()
    http_server.model.before = gate
    with http_server.connect() as flood, http_server.connect() as other:
        flood.sendall(request("/predict", BODY) * PIPELINED)
        http_server.running.wait(gate.reached())
        other.sendall(request("/predict", b'{"instances": [[14, 14]]}'))
        http_server.running.wait(until(lambda: http_server.service.queued_rows == 1))
        gate.open(runs=2)
        answer = read_answer(other)[2]
        turns = [rows for _, rows in http_server.model.ran]
        http_server.model.before = lambda _: None
        gate.open(runs=2)
    http_server.close()

    assert answer == {"predictions": [28.0]}
    assert turns[0] == [[1.0, 2.0]]
    assert [14.0, 14.0] in turns[1]


def test_nothing_behind_a_refusal_is_read(http_server):
    """Bytes that arrive together with a refused request are discarded with it."""
    bad = request("/predict", BODY, "content-type: text/plain\r\n")

    answers = http_server.send(bad + request("/predict", BODY) * 3)

    assert answers.count(b"HTTP/1.1") == 1
    assert status_of(answers) == 415


def test_a_client_that_goes_takes_its_request_out_of_the_queue(http_server):
    """A request whose client has disconnected is not run, and is counted as canceled."""
    gate = Gate()
    http_server.model.before = gate
    first = http_server.connect()
    first.sendall(request("/predict", BODY))
    http_server.running.wait(gate.reached())
    waiting = http_server.connect()
    waiting.sendall(request("/predict", b'{"instances": [[13, 13]]}'))
    http_server.running.wait(until(lambda: http_server.service.queued_rows == 1))

    reset(waiting)
    http_server.running.wait(until(lambda: http_server.service.queued_rows == 0))
    http_server.model.before = lambda _: None
    gate.open()
    answer = read_answer(first)
    first.close()

    assert answer[2] == {"predictions": [3.0]}
    assert not any([13.0, 13.0] in rows for _, rows in http_server.model.ran)
    assert http_server.service.metrics.failures["canceled"] == 1


def test_a_client_that_goes_while_its_batch_runs_leaves_nothing_behind(http_server):
    """The result of a batch whose clients have all disconnected is dropped."""
    gate = Gate()
    http_server.model.before = gate
    gone = http_server.connect()
    gone.sendall(request("/predict", BODY))
    http_server.running.wait(gate.reached())

    reset(gone)
    http_server.running.wait(until(lambda: not http_server.service._requests))
    http_server.model.before = lambda _: None
    gate.open()


def test_many_clients_that_go_leave_nothing_behind(http_server):
    """After a storm of disconnects no request is left."""
    for _ in range(100):
        with http_server.connect() as connection:
            connection.sendall(request("/predict", BODY))
            reset(connection)

    http_server.ask()
    http_server.running.wait(until(lambda: not http_server.server.connections))


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
def test_a_request_is_refused_once(http_server, caplog, refused, behind):
    """Whatever follows a request that is refused at its head, the client gets one response and no line is logged."""
    counted = http_server.service.metrics.requests.total()

    answer = http_server.send(head("host: t", refused, "content-length: 2") + b"{}" + behind)

    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nconnection: close\r\n" in answer
    assert http_server.service.metrics.requests.total() == counted + 1
    assert caplog.messages == []


def test_nothing_behind_the_last_request_is_one(http_server, caplog):
    """What a client sends behind its `connection: close` is neither read nor refused, and resets nothing."""
    counted = http_server.service.metrics.requests.total()

    answer = http_server.send(
        request("/predict", BODY, "connection: close\r\n") + b"GARBAGE\r\n\r\n" * 1000
    )

    assert body_of(answer) == {"predictions": [3.0]}
    assert http_server.service.metrics.requests.total() == counted + 1
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
def test_a_client_that_sends_no_more_is_answered(http_server, parts, count):
    """A client that closes its half of a connection gets all responses, and then the end."""
    answer = http_server.send(*parts, cut=True)

    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"HTTP/1.1") == count
    http_server.running.wait(until(lambda: not http_server.server.connections))


def test_a_client_that_sends_no_more_is_answered_however_long_that_takes(http_server):
    """The last response, and no other, announces that the connection ends."""
    gate = Gate()
    http_server.model.before = gate
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY) * 2)
        connection.shutdown(socket.SHUT_WR)
        http_server.running.wait(gate.reached())
        http_server.running.wait(
            until(lambda: any(c._half_closed for c in http_server.server.connections))
        )
        http_server.check_timeouts(IDLE_S)
        http_server.model.before = lambda _: None
        gate.open()
        answer = read_all(connection)

    assert [b"\r\nconnection: close" in part for part in answer.split(b"HTTP/1.1 200")[1:]] == [
        False,
        True,
    ]


def test_requests_of_a_client_that_sends_no_more_make_way(http_server):
    """Waiting requests of such clients, and those behind them, may be dropped where the queue is full."""
    gate = Gate()
    http_server.model.before = gate
    deprioritized = http_server.service._requests.deprioritized
    with http_server.connect() as connection:
        connection.sendall(request("/predict", BODY) * 2)
        http_server.running.wait(gate.reached())
        kept = dict(deprioritized)
        connection.shutdown(socket.SHUT_WR)
        http_server.running.wait(until(lambda: deprioritized))
        (first,) = deprioritized
        gate.open()
        http_server.running.wait(until(lambda: deprioritized and first not in deprioritized))
        http_server.model.before = lambda _: None
        gate.open()
        answer = read_all(connection)

    assert kept == {}
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert deprioritized == {}


def test_a_client_that_resets_after_its_end_is_given_up(http_server):
    """That a client has disconnected, rather than only sends no more, is noticed when it resets the connection."""
    gate = Gate()
    http_server.model.before = gate
    canceled = http_server.service.metrics.failures["canceled"]
    connection = http_server.connect()
    connection.sendall(request("/predict", BODY))
    connection.shutdown(socket.SHUT_WR)
    http_server.running.wait(gate.reached())
    http_server.running.wait(
        until(lambda: any(c._half_closed for c in http_server.server.connections))
    )
    http_server.check_timeouts(0)
    still = len(http_server.service._requests)

    reset(connection)
    http_server.running.wait(until(lambda: all_closed(http_server)))
    http_server.model.before = lambda _: None
    gate.open()

    assert still == 1
    assert http_server.service.metrics.failures["canceled"] == canceled + 1


def all_closed(http_server):
    """Check the timeouts of all connections; return whether none is left."""
    for connection in list(http_server.server.connections):
        connection.check_timeouts(0.0)
    return not http_server.server.connections and not http_server.service._requests


@mark.parametrize("part", [b"POST /pre", request("/predict", BODY)[:-1]])
def test_half_a_request_of_a_client_that_sends_no_more_is_refused(http_server, part):
    """An incomplete request of a client that sends no more is 400, after the response to the one before it."""
    answer = http_server.send(request("/predict", BODY) + part, cut=True)

    assert answer.count(b"HTTP/1.1") == 2
    assert answer.index(b"HTTP/1.1 200") < answer.index(b"HTTP/1.1 400")
    assert answer.endswith(b'"}')
    assert b": expected all of it, got less" in answer
