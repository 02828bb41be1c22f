"""Responses of a connection on a real socket: HTTP versions, methods, targets and its end."""

import contextlib

from pytest import mark

from tests.server.fakes import Gate
from tests.server.http_harness import (
    BODY,
    HttpHarness,
    body_of,
    head,
    next_answer,
    next_json,
    read_answer,
    request,
    reset,
    status_of,
    until,
)

pytestmark = mark.usefixtures("still_answers")


def test_a_prediction_is_answered_on_the_loop(http_server):
    """A good request gets its prediction."""
    status, headers, body = http_server.post({"instances": [[1, 2]]})

    assert (status, body) == (200, {"predictions": [3.0]})
    assert headers["content-type"] == "application/json"


def test_a_client_that_waits_to_be_asked_is(http_server):
    """Expect: 100-continue is answered before the body, unless the body is refused."""
    with http_server.connect() as connection:
        connection.sendall(head("host: t", "expect: 100-continue", f"content-length: {len(BODY)}"))
        asked = connection.recv(25)
        connection.sendall(BODY)
        answer = next_json(connection)
    refused = http_server.send(head("host: t", "expect: 100-continue", "content-length: 999999"))

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer == {"predictions": [3.0]}
    assert status_of(refused) == 413


def test_an_http_1_0_answer_says_that_its_connection_is_kept(http_server):
    """A kept HTTP/1.0 connection is confirmed by `connection: keep-alive`, as such a client expects."""
    old = request("/predict", BODY, "connection: keep-alive\r\n").replace(b"/1.1", b"/1.0")
    with http_server.connect() as connection:
        for _ in range(2):
            connection.sendall(old)
            head, body = next_answer(connection)

            assert b"\r\nconnection: keep-alive\r\n" in head
            assert body == {"predictions": [3.0]}

    new = http_server.send(
        request("/predict", BODY), request("/predict", BODY, "connection: close\r\n")
    )
    plain = http_server.send(request("/predict", BODY).replace(b"/1.1", b"/1.0"))

    assert new.count(b"\r\nconnection: ") == 1
    assert b"\r\nconnection: close\r\n" in plain


def test_http_1_0_is_not_asked_to_go_on(http_server):
    """A client of HTTP 1.0 knows nothing of interim answers."""
    old = request("/predict", BODY, "expect: 100-continue\r\n").replace(b"/1.1", b"/1.0")

    answer = http_server.send(old)

    assert answer.count(b"HTTP/1.1") == 1
    assert body_of(answer) == {"predictions": [3.0]}


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
    """While many of them wait, the health check is answered; requests of clients that disconnect are cancelled."""
    http_server, gate = HttpHarness(), Gate()
    http_server.model.before = gate
    body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
    body = body if "v2" in target else BODY
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(http_server.connect()) for _ in range(6)]
        for connection in waiting:
            connection.sendall(request(target, body))
        http_server.running.wait(gate.reached())
        http_server.running.wait(until(lambda: len(http_server.service._requests) == 6))
        healthy = http_server.send(
            head("host: t", "connection: close", path="/health", method="GET")
        )
        reset(waiting.pop())
        http_server.running.wait(until(lambda: len(http_server.service._requests) == 5))
        gate.open(6)
        statuses = {read_answer(connection)[0] for connection in waiting}
    http_server.close()

    assert status_of(healthy) == 200
    assert statuses == {200}


def test_a_target_that_names_the_host_is_its_path(http_server):
    """A request target in absolute form, as for proxies, is accepted."""
    lines = ("host: t", "connection: close")

    health = http_server.send(head(*lines, path="http://t/health", method="GET"))
    page = http_server.send(head(*lines, path="http://t", method="GET"))
    other = http_server.send(head(*lines, path="http://t/nothing", method="GET"))

    assert [status_of(answer) for answer in (health, page, other)] == [200, 200, 404]


@mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "PATCH"])
def test_other_methods_are_refused_or_answered_without_a_body(http_server, method):
    """A method that a route lacks is 405 with the allowed ones; OPTIONS returns the same."""
    answer = http_server.send(request("/predict", b"", "connection: close\r\n", method))

    assert status_of(answer) == (200 if method == "OPTIONS" else 405)
    assert {b"OPTIONS", b"POST"} == set(allowed_of(answer))


def allowed_of(answer):
    """Return the methods that a raw response says are allowed."""
    line = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"allow:"))
    return line.partition(b":")[2].replace(b" ", b"").split(b",")


def test_connection_close_is_said_while_draining(http_server):
    """Once the server drains, responses ask clients to open a new connection."""

    async def drain(to):
        http_server.service._state.change(to)

    ready = http_server.service.state
    http_server.service.drain()
    status, headers, body = http_server.post({"instances": [[1, 2]]})
    http_server.running.wait(drain(ready))

    assert (status, body) == (200, {"predictions": [3.0]})
    assert headers["connection"] == "close"
