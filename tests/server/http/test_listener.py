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


def test_connections_beyond_the_most_wait_in_the_kernel(entrance):
    """A connection that is one too many is served once another has ended."""
    entrance.server._max_connections, limit = 2, entrance.server._max_connections
    entrance.server._check_s, check_s = 0.01, entrance.server._check_s
    try:
        first, second = entrance.connect(), entrance.connect()
        entrance.running.wait(until(lambda: len(entrance.server.connections) == 2))
        with entrance.connect() as third:
            third.sendall(request("/predict", BODY))
            first.close()
            assert read_answer(third)[2] == {"predictions": [3.0]}
        second.close()
    finally:
        entrance.server._max_connections, entrance.server._check_s = limit, check_s


def test_silent_connections_hold_nobody_up(entrance):
    """Connections that send nothing, or half a request, leave the others be."""
    silent = [entrance.connect() for _ in range(200)]
    for connection in silent[::2]:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost:")

    assert entrance.ask() == [3.0]

    for connection in silent:
        connection.close()


def test_what_is_not_all_there_does_not_hold_up_the_end():
    """A server that stops refuses requests that are still coming, and waits for no client to leave."""
    entrance = HttpHarness()
    with contextlib.ExitStack() as stack:
        refused, stalled, headless = (stack.enter_context(entrance.connect()) for _ in range(3))
        refused.sendall(request("/predict", BODY, "content-type: text/plain\r\n"))
        next_json(refused)
        stalled.sendall(request("/predict", BODY)[:-1])
        headless.sendall(b"POST /pre")
        entrance.running.wait(until(lambda: len(entrance.server.connections) == 3))
        entrance.running.wait(until(lambda: not any(c.idle for c in entrance.server.connections)))
        entrance.service.stop()
        entrance.close()
        answers = [read_answer(connection) for connection in (stalled, headless)]

    assert [(status, body["code"]) for status, _, body in answers] == [(503, "draining")] * 2
    assert all(headers["connection"] == "close" for _, headers, _ in answers)


def stopping(entrance, grace_s=30.0):
    """Stop listening; returns a future that is done when all requests are answered and the grace is over."""
    return asyncio.run_coroutine_threadsafe(entrance.server.finish(grace_s), entrance.running.loop)


def test_who_is_connected_as_the_listener_closes_is_answered():
    """Connections that nobody has accepted, and idle ones, have their requests answered, and none is reset."""
    entrance, gate = HttpHarness(), Gate()
    entrance.model.before = gate
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(entrance.connect())
        idle = stack.enter_context(entrance.connect())
        held.sendall(request("/predict", BODY))
        entrance.running.wait(gate.reached())
        entrance.server._max_connections = 0  # so that nobody else is accepted
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
    entrance, gate = HttpHarness(), Gate()
    with entrance.connect() as idle, entrance.connect() as ahead:
        ahead.sendall(request("/predict", BODY))
        next_answer(ahead)
        entrance.model.before = gate
        ahead.sendall(request("/predict", BODY) * 4)
        entrance.running.wait(gate.reached())
        entrance.running.wait(
            until(lambda: any(c._pipeline.waiting == 3 for c in entrance.server.connections))
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
    entrance = HttpHarness()
    stopping(entrance, grace_s=0.0).result(30)

    with raises(ConnectionRefusedError):
        entrance.connect()

    entrance.close()
