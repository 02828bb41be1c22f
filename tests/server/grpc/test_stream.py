"""Streams over gRPC: many requests at once, errors among the responses, and how streams end."""

import asyncio
import itertools
import queue
import random

import grpc
import numpy as np
from pytest import fixture, mark, raises

from server.grpc.stream import MAX_PENDING, Stream
from tests.server.fakes import FakeModel, Gate
from tests.server.grpc_harness import GrpcHarness, array_of, rows

pytestmark = mark.usefixtures("front")


@fixture
def model():
    """A model with a bucket of 1 and one of 4."""
    return FakeModel()


@fixture
def grpc_server(model):
    """A server with that model."""
    grpc_server = GrpcHarness(model)
    yield grpc_server
    grpc_server.close()


def read(answer):
    """Return a response's id, and its sums or its error."""
    response = answer.infer_response
    if answer.error_message:
        return response.id, answer.error_message
    return response.id, array_of(response, "y", np.float32).tolist()


class Requests:
    """Requests of a stream, sent one by one until there are no more."""

    def __init__(self):
        self._queue = queue.SimpleQueue()

    def send(self, *requests):
        """Send requests; None ends the stream."""
        for request in requests:
            self._queue.put(request)

    def __iter__(self):
        """Return what is sent to gRPC."""
        return iter(self._queue.get, None)


def waiting(grpc_server, count):
    """Wait until so many rows are in the queue."""
    while grpc_server.on_loop(lambda: grpc_server.service.queued_rows) != count:
        pass


def test_a_stream_gives_each_request_its_answer(grpc_server):
    """A thousand requests of random sizes on one stream get their own sums."""
    sizes = random.Random(0)
    numbers = itertools.count()
    asked = {
        str(i): [float(next(numbers)) for _ in range(sizes.randrange(1, 7))] for i in range(1000)
    }

    found = dict(map(read, grpc_server.stream(rows(*n, identity=i) for i, n in asked.items())))

    assert found == asked


def test_several_requests_of_a_stream_share_a_batch(grpc_server, model):
    """Requests are read while others run, and share batches with them."""
    model.before = gate = Gate()
    requests = Requests()
    answers = grpc_server.stream(iter(requests))
    requests.send(rows(1, identity="1"))
    grpc_server.running.wait(gate.reached())
    requests.send(rows(2, identity="2"), rows(3, identity="3"), None)
    waiting(grpc_server, 2)
    gate.open(runs=2)

    assert dict(map(read, answers)) == {"1": [1.0], "2": [2.0], "3": [3.0]}
    assert [bucket for bucket, _ in model.ran] == [1, 4]


def test_a_broken_request_does_not_end_a_stream(grpc_server):
    """Errors are returned in line, with the request's id, and the stream goes on."""
    bad = rows(2, identity="b")
    bad.raw_input_contents[0] = b"short"
    other = rows(3, identity="c")
    other.model_name = "other"
    sent = [rows(1, identity="a"), bad, b"\xff\xff", other, rows(4, identity="d")]

    answers = sorted(map(read, grpc_server.stream(iter(sent))))

    assert answers == [
        ("", "message: expected a ModelInferRequest, got other bytes"),
        ("a", [1.0]),
        ("b", "input 'x': expected 8 bytes for shape [1, 2], got 5"),
        ("c", "model: expected 'fake', got 'other'"),
        ("d", [4.0]),
    ]


def test_messages_of_a_stream_are_counted(grpc_server):
    """Every message is counted as an inference, and its failure too."""
    bad = rows(2)
    bad.model_name = "other"

    list(grpc_server.stream(iter([rows(1), bad, rows(3)])))

    metrics = grpc_server.service.metrics
    assert metrics.requests == {("grpc", "OK"): 2, ("grpc", "NOT_FOUND"): 1}
    assert (metrics.succeeded.count, metrics.failed.count) == (2, 1)
    assert metrics.failures == {"other": 1}


def test_cancelling_a_stream_gives_its_requests_up(grpc_server, model):
    """Waiting requests leave the queue, and do not run."""
    model.before = gate = Gate()
    requests = Requests()
    answers = grpc_server.stream(iter(requests))
    requests.send(rows(1))
    grpc_server.running.wait(gate.reached())
    requests.send(rows(2), rows(3))
    waiting(grpc_server, 2)

    answers.cancel()
    waiting(grpc_server, 0)
    requests.send(None)
    gate.open(runs=2)

    assert grpc_server.ask(9) == [9.0]
    assert [rows for _, rows in model.ran] == [[[1, 0]], [[9, 0]]]
    assert grpc_server.service.metrics.failures == {"canceled": 3}


def test_a_client_may_half_close_and_still_be_answered(grpc_server, model):
    """A client that has no more requests gets the responses to those that it sent."""
    model.before = gate = Gate()
    requests = Requests()
    answers = grpc_server.stream(iter(requests))
    requests.send(rows(5, identity="last"), None)
    grpc_server.running.wait(gate.reached())
    gate.open()

    assert list(map(read, answers)) == [("last", [5.0])]


def test_a_stop_answers_what_was_read_and_ends_a_stream(grpc_server, model):
    """A stream that its client keeps open ends when the server stops, after its responses."""
    model.before = gate = Gate()
    requests = Requests()
    answers = grpc_server.stream(iter(requests))
    requests.send(rows(1, identity="a"))
    grpc_server.running.wait(gate.reached())

    stopping = asyncio.run_coroutine_threadsafe(
        grpc_server.server.stop(30), grpc_server.running.loop
    )
    grpc_server.on_loop(lambda: None)
    gate.open()

    assert read(next(answers)) == ("a", [1.0])
    with raises(grpc.RpcError) as ended:
        next(answers)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ended.value.details() == "the server is stopping"
    stopping.result(30)
    requests.send(None)


def test_a_stream_s_deadline_ends_it(grpc_server, model):
    """When its client's deadline passes, a stream's requests are cancelled."""
    model.before = gate = Gate()
    requests = Requests()
    answers = grpc_server.stream(iter(requests), timeout=0.2)
    requests.send(rows(1), rows(2))

    with raises(grpc.RpcError) as ended:
        list(answers)
    waiting(grpc_server, 0)
    requests.send(None)
    model.before = lambda _: None
    gate.open(runs=2)

    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert grpc_server.ask(3) == [3.0]


class Peer:
    """A client that reads responses on demand."""

    def __init__(self):
        self.read = []
        self._slots = asyncio.Semaphore(0)

    def take(self, count):
        """Read so many responses."""
        for _ in range(count):
            self._slots.release()

    async def write(self, answer):
        """Accept a response once the client reads it."""
        await self._slots.acquire()
        self.read.append(answer)


async def echo(request):
    """Respond at once."""
    return request


async def numbered(sent, count):
    """Yield requests, and record how many were read."""
    for number in range(count):
        sent.append(number)
        yield b"%d" % number


async def settled():
    """Let everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


def test_a_client_that_does_not_read_is_not_read_from():
    """Unread responses block the requests behind them, so that memory is bounded."""

    async def run():
        peer, sent = Peer(), []
        stream = Stream(echo, peer.write, max_pending=3)
        running = asyncio.ensure_future(stream.run(numbered(sent, 10)))
        await settled()
        held_up = len(sent)
        peer.take(10)
        assert await asyncio.wait_for(running, 30)
        return held_up, peer.read

    held_up, answers = asyncio.run(run())

    assert held_up == 4
    assert answers == [b"%d" % number for number in range(10)]
    assert MAX_PENDING > 2 * 64


def test_a_client_that_is_gone_ends_the_stream():
    """When a response cannot be written the stream ends with that error, not silently."""

    async def disconnected(_):
        raise ConnectionError("nobody is there")

    async def run():
        stream = Stream(echo, disconnected)
        await asyncio.wait_for(stream.run(numbered([], 3)), 30)

    with raises(ConnectionError, match="nobody is there"):
        asyncio.run(run())
