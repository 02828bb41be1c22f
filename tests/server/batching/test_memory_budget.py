"""The memory of all connections is bounded: requests beyond that are refused, and no connection waits for another."""

import asyncio
import contextlib
import gzip
import json

from pytest import fixture, mark, raises

from server.batching.memory_budget import FREE_BYTES, BodyBuffer, MemoryBudget
from server.config import ServerConfig
from server.errors import Overloaded, TooLarge
from tests.server.fakes import FakeModel, Gate
from tests.server.grpc_harness import GrpcHarness, array_of, refused, rows
from tests.server.http_harness import HttpHarness, read_answer, request, reset

LIMIT = 400_000
LARGE = 100_000
BODY = b'{"instances": [[1, 2]]}'
TEXT = f"bodies: expected at most {LIMIT} bytes of all requests under way, got more"


@fixture
def gate():
    """Holds the model."""
    return Gate()


@fixture
def http_server():
    """A server whose memory budget is four large bodies."""
    http_server = HttpHarness(limits={"memory_bytes": LIMIT})
    yield http_server
    http_server.close()


def large(size=LARGE):
    """Write a good request with a body of so many bytes."""
    return request("/predict", BODY + b" " * (size - len(BODY)))


def wait_until(http_server, size):
    """Wait until the server counts so many bytes."""

    async def wait():
        while http_server.service.memory.size != size:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)

    http_server.running.wait(asyncio.wait_for(wait(), 30))


def test_what_is_held_is_counted_to_the_byte():
    """The budget can be used up exactly, one byte more is refused, and released bytes are available again."""
    budget = MemoryBudget(10)
    budget.acquire(4)
    budget.acquire(6)
    with raises(Overloaded, match=r"^bodies: expected at most 10 bytes of all requests under way"):
        budget.acquire(1)
    budget.release(6)
    budget.acquire(5)

    assert budget.size == 9


def test_small_bodies_are_not_counted():
    """A body counts from the byte on that makes it large, and then all of it."""
    budget = MemoryBudget(LIMIT)
    body = BodyBuffer(budget)
    body.begin(LIMIT)

    body.add(b"a" * FREE_BYTES)
    small = budget.size
    body.add(b"b")
    counted = budget.size
    whole = body.take()
    passed_on = body.detach()
    body.drop()

    assert (small, counted, passed_on, budget.size) == (0, FREE_BYTES + 1, FREE_BYTES + 1, counted)
    assert whole == b"a" * FREE_BYTES + b"b"


def test_a_body_beyond_its_own_limit_is_too_large():
    """The limit of a single body comes first, and a body that is dropped counts no more."""
    budget = MemoryBudget(LIMIT)
    body = BodyBuffer(budget)
    body.begin(LARGE)
    body.add(b"a" * LARGE)

    with raises(TooLarge, match=f"^body: expected at most {LARGE} bytes, got more$"):
        body.add(b"a")
    body.drop()

    assert budget.size == 0


def test_the_bound_follows_the_largest_body():
    """Eight of the largest bodies may be received at once."""
    config = ServerConfig(bundle="b", max_body_bytes=1000)

    assert config.limits.memory_bytes == 8000


def test_bodies_that_are_too_much_together_are_refused(http_server):
    """The body beyond the budget is 503; those before it are answered, and small ones never wait."""
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(http_server.connect()) for _ in range(4)]
        late, small = (stack.enter_context(http_server.connect()) for _ in range(2))
        for connection in first:
            connection.sendall(large()[:-1])
        wait_until(http_server, LIMIT - 4)

        late.sendall(large())
        status, headers, answer = read_answer(late)
        small.sendall(request("/predict", BODY))
        beside = read_answer(small)[2]
        for connection in first:
            connection.sendall(b" ")
        whole = [read_answer(connection)[::2] for connection in first]

    assert (status, answer["code"], answer["error"]) == (503, "queue_full", TEXT)
    assert headers["retry-after"] == "1"
    assert beside == {"predictions": [3.0]}
    assert whole == [(200, {"predictions": [3.0]})] * 4
    assert http_server.service.memory.size == 0
    assert http_server.service.metrics.failures["rejected"] == 1


def test_a_body_in_chunks_is_bounded_as_well(http_server):
    """Bodies of unknown length are counted as they arrive."""
    head = b"POST /predict HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n" % (LARGE, b" " * LARGE)
    with http_server.connect() as first, http_server.connect() as second:
        first.sendall(head + chunk * 3)
        wait_until(http_server, 3 * LARGE)
        second.sendall(head + chunk * 2)
        answer = read_answer(second)
        wait_until(http_server, 3 * LARGE)

    wait_until(http_server, 0)
    assert (answer[0], answer[2]["code"]) == (503, "queue_full")


def test_a_body_whose_client_goes_is_held_no_more(http_server):
    """Bytes of a body are released when its connection is lost, or at its timeout."""
    with http_server.connect() as gone, http_server.connect() as stalled:
        gone.sendall(large()[:-1])
        stalled.sendall(large()[:-1])
        wait_until(http_server, 2 * (LARGE - 1))
        reset(gone)
        wait_until(http_server, LARGE - 1)
        http_server.check_timeouts(later_s=100)
        status = read_answer(stalled)[0]

        assert status == 408
        assert http_server.service.memory.size == 0


def test_bodies_of_requests_that_wait_are_held(gate):
    """A body is counted until its request is answered, or cancelled because its client disconnected."""
    model = FakeModel()
    model.before = gate
    http_server = HttpHarness(model, limits={"memory_bytes": LIMIT})
    with http_server.connect() as stays, http_server.connect() as goes:
        stays.sendall(large())
        http_server.running.wait(gate.reached())
        goes.sendall(large())
        wait_until(http_server, 2 * LARGE)
        reset(goes)
        wait_until(http_server, LARGE)
        gate.open(2)
        answer = read_answer(stays)[2]

    wait_until(http_server, 0)
    http_server.close()
    assert answer == {"predictions": [3.0]}


def test_a_body_counts_as_what_it_becomes(gate):
    """The growth by decompression is counted until its request is answered, or its client has disconnected."""
    model = FakeModel()
    model.before = gate
    http_server = HttpHarness(model, limits={"memory_bytes": LIMIT})
    packed = gzip.compress(BODY + b" " * (LARGE * 2))
    added = LARGE * 2 + len(BODY) - len(packed)
    sent = request("/predict", packed, "content-encoding: gzip\r\n")
    with http_server.connect() as stays, http_server.connect() as goes:
        stays.sendall(sent)
        wait_until(http_server, added)
        http_server.running.wait(gate.reached())
        with http_server.connect() as late:
            late.sendall(
                request(
                    "/predict", gzip.compress(BODY + b" " * LIMIT), "content-encoding: gzip\r\n"
                )
            )
            status, _, refused = read_answer(late)
        goes.sendall(request("/predict", BODY.ljust(LARGE)))
        wait_until(http_server, added + LARGE)
        reset(goes)
        wait_until(http_server, added)
        gate.open(2)
        answer = read_answer(stays)[2]
    wait_until(http_server, 0)
    http_server.close()

    assert (status, refused["error"]) == (503, TEXT)
    assert answer == {"predictions": [3.0]}


def test_a_compressed_body_whose_client_goes_is_held_no_more(gate):
    """The growth by decompression is released with the request."""
    model = FakeModel()
    model.before = gate
    http_server = HttpHarness(model, limits={"memory_bytes": LIMIT})
    packed = gzip.compress(BODY + b" " * LARGE)
    with http_server.connect() as goes:
        goes.sendall(request("/predict", packed, "content-encoding: gzip\r\n"))
        http_server.running.wait(gate.reached())
        wait_until(http_server, LARGE + len(BODY) - len(packed))
        reset(goes)
        wait_until(http_server, 0)
        gate.open()
    http_server.close()


def test_requests_behind_each_other_are_bounded(gate):
    """Pipelined requests are counted, large or not; those beyond the budget are refused."""
    model = FakeModel()
    model.before = gate
    http_server = HttpHarness(model, limits={"memory_bytes": 3 * 60_000})
    with http_server.connect() as connection:
        connection.sendall(large(60_000))
        http_server.running.wait(gate.reached())
        connection.sendall(large(60_000) * 4)
        wait_until(http_server, 3 * 60_000)
        gate.open(5)
        with connection.makefile("rb") as file:
            raw = file.read()

    wait_until(http_server, 0)
    http_server.close()
    answers = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert answers[:-1] == [{"predictions": [3.0]}] * 4
    assert answers[-1]["code"] == "queue_full"


@mark.parametrize("how", ["unary", "stream"])
def test_messages_are_bounded(gate, how):
    """Messages of gRPC are counted from their arrival until they are answered."""
    model = FakeModel()
    model.before = gate
    message = rows(1, 2)
    size = len(message.SerializeToString())
    called = GrpcHarness(model, limits={"memory_bytes": 3 * size})
    waiting = called.infer.future(message)
    called.running.wait(gate.reached())
    others = [called.infer.future(message) for _ in range(2)]
    wait_until(called, 3 * size)

    if how == "unary":
        code, text = refused(lambda: called.infer(message, timeout=30))
    else:
        (answer,) = called.stream(iter([message]), timeout=30)
        code, text = "UNAVAILABLE", answer.error_message
    gate.open(9)
    sums = [array_of(call.result(30), "y", "float32").tolist() for call in (waiting, *others)]

    assert code == "UNAVAILABLE"
    assert text == f"bodies: expected at most {3 * size} bytes of all requests under way, got more"
    assert sums == [[1.0, 2.0]] * 3
    assert called.ask(5) == [5.0]
    wait_until(called, 0)
    called.close()
