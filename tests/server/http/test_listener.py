"""Accepting connections and graceful shutdown, on real sockets."""

import asyncio
import contextlib

from pytest import mark, raises

from tests.server.fakes import Gate
from tests.server.http_harness import (
    BODY,
    HttpHarness,
    next_answer,
    next_json,
    read_all,
    read_answer,
    request,
    until,
)

pytestmark = mark.usefixtures("still_answers")


def test_connections_beyond_the_most_wait_in_the_kernel(http_server):
    """A connection beyond the limit is served once another has ended."""
    http_server.server._max_connections, limit = 2, http_server.server._max_connections
    http_server.server._check_s, check_s = 0.01, http_server.server._check_s
    try:
        first, second = http_server.connect(), http_server.connect()
        http_server.running.wait(until(lambda: len(http_server.server.connections) == 2))
        with http_server.connect() as third:
            third.sendall(request("/predict", BODY))
            first.close()
            assert read_answer(third)[2] == {"predictions": [3.0]}
        second.close()
    finally:
        http_server.server._max_connections, http_server.server._check_s = limit, check_s


def test_silent_connections_delay_no_others(http_server):
    """Connections that send nothing, or half a request, do not affect the others."""
    silent = [http_server.connect() for _ in range(200)]
    for connection in silent[::2]:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost:")

    assert http_server.ask() == [3.0]

    for connection in silent:
        connection.close()


def test_what_is_not_all_there_does_not_hold_up_the_end():
    """A server that stops refuses requests that are still arriving, and does not wait for clients to disconnect."""
    http_server = HttpHarness()
    with contextlib.ExitStack() as stack:
        refused, stalled, headless = (stack.enter_context(http_server.connect()) for _ in range(3))
        refused.sendall(request("/predict", BODY, "content-type: text/plain\r\n"))
        next_json(refused)
        stalled.sendall(request("/predict", BODY)[:-1])
        headless.sendall(b"POST /pre")
        http_server.running.wait(until(lambda: len(http_server.server.connections) == 3))
        http_server.running.wait(
            until(lambda: not any(c.idle for c in http_server.server.connections))
        )
        http_server.service.stop()
        http_server.close()
        answers = [read_answer(connection) for connection in (stalled, headless)]

    assert [(status, body["code"]) for status, _, body in answers] == [(503, "draining")] * 2
    assert all(headers["connection"] == "close" for _, headers, _ in answers)


def stopping(http_server, grace_s=30.0):
    """Stop listening; return a future that is done when all requests are answered and the grace period is over."""
    return asyncio.run_coroutine_threadsafe(
        http_server.server.finish(grace_s), http_server.running.loop
    )


def test_who_is_connected_as_the_listener_closes_is_answered():
    """Requests on connections that were not accepted yet, and on idle ones, are answered, and none is reset."""
    http_server, gate = HttpHarness(), Gate()
    http_server.model.before = gate
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(http_server.connect())
        idle = stack.enter_context(http_server.connect())
        held.sendall(request("/predict", BODY))
        http_server.running.wait(gate.reached())
        http_server.server._max_connections = 0  # so that no other connection is accepted
        waiting = [stack.enter_context(http_server.connect()) for _ in range(20)]
        for connection in waiting:
            connection.sendall(request("/predict", BODY))
        http_server.service.drain()
        finished = stopping(http_server, grace_s=0.0)
        http_server.running.wait(until(lambda: len(http_server.service._requests) == 21))
        http_server.model.before = lambda _: None
        gate.open()
        finished.result(30)
        answers = [read_all(connection) for connection in (held, *waiting)]
        silent = read_all(idle)
    http_server.close()

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert all(b"\r\nconnection: close\r\n" in answer for answer in answers)
    assert silent == b""


def test_a_request_while_a_server_stops_is_answered():
    """During the grace period idle connections, and all pipelined requests that were read, are answered."""
    http_server, gate = HttpHarness(), Gate()
    with http_server.connect() as idle, http_server.connect() as ahead:
        ahead.sendall(request("/predict", BODY))
        next_answer(ahead)
        http_server.model.before = gate
        ahead.sendall(request("/predict", BODY) * 4)
        http_server.running.wait(gate.reached())
        http_server.running.wait(
            until(lambda: any(c._pipeline.waiting == 3 for c in http_server.server.connections))
        )
        http_server.service.drain()
        finished = stopping(http_server)
        http_server.model.before = lambda _: None
        gate.open()
        answers = read_all(ahead)
        idle.sendall(request("/predict", BODY))
        late = read_all(idle)
        finished.cancel()
    http_server.close()

    assert answers.count(b"HTTP/1.1 200") == 4
    assert answers.count(b"\r\nconnection: close\r\n") == 1
    assert late.startswith(b"HTTP/1.1 200")


def test_who_connects_to_a_server_that_stops_is_refused():
    """After the listener has closed connections are refused."""
    http_server = HttpHarness()
    stopping(http_server, grace_s=0.0).result(30)

    with raises(ConnectionRefusedError):
        http_server.connect()

    http_server.close()
