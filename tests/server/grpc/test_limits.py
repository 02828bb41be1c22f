"""The memory that the gRPC server holds for clients, and the errors beyond its limits."""

import asyncio
import collections
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from pytest import fixture, mark, raises

from server.batching.memory_budget import FREE_BYTES, MemoryBudget, Unread
from server.config import ServerConfig
from server.errors import BodyTimeout, Overloaded
from server.grpc.options import options
from server.grpc.receive import SLOTS
from server.grpc.services import INFERENCE
from server.grpc.stream import MAX_CHECKS, UNREAD, Stream, Streams
from server.protos import inference_pb2 as pb
from tests.server.fakes import FakeModel
from tests.server.grpc_harness import GrpcHarness, array_of, refused, rows

pytestmark = mark.usefixtures("front")

STOPPING = ("UNAVAILABLE", "the server is stopping")


@fixture
def grpc_server():
    """A server before a model that sums rows."""
    grpc_server = GrpcHarness(FakeModel(buckets=(1, 64)))
    yield grpc_server
    grpc_server.close()


class Silent:
    """Calls of one connection that begin, and send no message until the test says so."""

    def __init__(self, grpc_server, count):
        self._go = threading.Event()
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{grpc_server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        method = self._channel.stream_unary(f"/{INFERENCE}/ModelInfer")
        self.calls = [method.future(self._late(), timeout=60) for _ in range(count)]
        while grpc_server.on_loop(grpc_server.calls_without_message) != count:
            pass

    def _late(self):
        self._go.wait()
        yield rows(1).SerializeToString()

    def close(self):
        """Send what is left, and close the connection."""
        self._go.set()
        self._channel.close()


async def burst(port, count, channels):
    """Call for each number at once; count the results."""
    found = collections.Counter()
    made = [
        grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        for _ in range(channels)
    ]

    async def one(number):
        method = made[number % channels].unary_unary(f"/{INFERENCE}/ModelInfer")
        try:
            answer = pb.ModelInferResponse.FromString(
                await method(rows(number).SerializeToString(), timeout=120)
            )
            found[array_of(answer, "y", np.float32).tolist() == [float(number)]] += 1
        except grpc.aio.AioRpcError as error:
            found[error.code().name] += 1

    await asyncio.gather(*map(one, range(count)))
    for channel in made:
        await channel.close()
    return found


def test_a_burst_of_calls_is_answered(grpc_server):
    """Concurrent calls, as many as the queue takes, all get their own responses."""
    assert asyncio.run(burst(grpc_server.port, 3600, channels=24)) == {True: 3600}


def test_calls_that_never_send_their_message_delay_no_others(grpc_server):
    """A call of another connection is answered while one connection has more such calls than may send at once."""
    silent = Silent(grpc_server, 3 * SLOTS)

    assert grpc_server.ask(7) == [7.0]
    silent.close()


def test_a_stop_refuses_calls_whose_message_has_not_come(grpc_server):
    """Calls that have sent no message are refused when the server stops, and do not delay it."""
    silent = Silent(grpc_server, SLOTS + 2)

    grpc_server.running.wait(grpc_server.server.stop(30))

    assert {refused(call.result) for call in silent.calls} == {STOPPING}
    assert grpc_server.service.metrics.requests == {("grpc", "UNAVAILABLE"): SLOTS + 2}
    silent.close()


def test_a_large_answer_is_counted_until_it_is_sent(grpc_server):
    """Bytes of responses beyond the free amount are counted while they are sent, and released afterwards."""
    numbers = range(1000)
    large = rows(*numbers, identity="i" * 2 * FREE_BYTES)

    assert len(grpc_server.infer(large, timeout=60).id) == 2 * FREE_BYTES
    while grpc_server.on_loop(lambda: grpc_server.service.memory.size):
        pass


def test_an_answer_that_may_not_wait_is_refused(grpc_server):
    """Where unread responses take too much memory already, a large one is refused with UNAVAILABLE."""
    most = grpc_server.service.memory._limit
    grpc_server.service.memory.size = most - FREE_BYTES

    large = rows(1, identity="i" * 2 * FREE_BYTES)
    status, text = refused(lambda: grpc_server.infer(large, timeout=60))
    grpc_server.service.memory.size -= most - FREE_BYTES

    assert status == "UNAVAILABLE"
    assert text == f"bodies: expected at most {most} bytes of all requests under way, got more"
    assert grpc_server.service.memory.size == 0


def test_answers_of_a_stream_are_counted_beyond_the_first():
    """Bytes that a client has not read are counted, except for a small amount of each stream."""
    budget = MemoryBudget(1)
    unread = Unread(budget)

    unread.add(FREE_BYTES)
    small = budget.size
    unread.add(100)
    counted = budget.size
    unread.remove(60)
    unread.remove(FREE_BYTES)

    assert (small, counted, budget.size, unread.size) == (0, 100, 0, 40)


def test_answers_of_all_streams_are_bounded():
    """A response beyond the limit is refused, and not counted."""
    budget = MemoryBudget(1)
    budget.size = most = 1 << 29
    unread = Unread(budget)
    unread.add(FREE_BYTES)

    with raises(Overloaded, match=f"^answers: expected at most {most} bytes that wait to be read, got more$"):  # fmt: skip
        unread.add(1)

    assert (budget.size, unread.size) == (most, FREE_BYTES)


async def settled():
    """Let everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


async def endless(read):
    """Yield requests without end, and record them."""
    while True:
        read.append(b"request")
        yield read[-1]


async def never_returns(_):
    """Never return, as a write to a client that does not read."""
    await asyncio.Event().wait()


def stream_of(size, write, expected=0):
    """Make a stream whose responses have so many bytes; return it and the counter of unread bytes."""
    unread = Unread(MemoryBudget(1 << 30))

    async def answer(_):
        unread.add(size)
        return b"a" * size

    return Stream(answer, write, unread=unread, expected=expected), unread


def test_unread_large_answers_hold_up_requests():
    """A stream reads no request whose response would exceed the limit of unread bytes."""

    async def run(**options):
        read = []
        stream, unread = stream_of(UNREAD // 4, never_returns, **options)
        running = asyncio.ensure_future(stream.run(endless(read)))
        await settled()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return len(read), unread.size

    assert asyncio.run(run()) == (4, 0)
    assert asyncio.run(run(expected=UNREAD)) == (1, 0)


def test_a_stream_whose_client_reads_nothing_ends():
    """After so many checks without a response that was read the stream is closed."""

    async def run():
        stream, unread = stream_of(10, never_returns)
        running = asyncio.ensure_future(stream.run(endless([])))
        await settled()
        for _ in range(MAX_CHECKS):
            stream.check_timeouts()
        await settled()
        assert not running.done()
        stream.check_timeouts()
        with raises(BodyTimeout, match=r"^answers: expected one to be read within 60 s$"):
            await asyncio.wait_for(running, 30)
        return unread.size

    assert asyncio.run(run()) == 0


def test_a_stream_without_answers_to_read_goes_on():
    """A stream without requests for a long time stays open."""

    async def run():
        stream, _ = stream_of(10, never_returns)
        silent = asyncio.Event()

        async def requests():
            await silent.wait()
            yield b""

        running = asyncio.ensure_future(stream.run(requests()))
        await settled()
        for _ in range(3 * MAX_CHECKS):
            stream.check_timeouts()
        await settled()
        ended = running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return ended

    assert not asyncio.run(run())


def test_of_too_many_streams_one_of_the_busiest_connection_ends():
    """A connection with many streams loses one to a connection without any, never to itself."""

    async def run():
        streams = Streams(limit=3)
        made = [stream_of(1, never_returns)[0] for _ in range(5)]
        running = [asyncio.ensure_future(stream.run(endless([]))) for stream in made]
        await settled()
        for stream in made[:3]:
            streams.add("a", stream)
        with raises(Overloaded, match=r"^streams: expected at most 3 at once, got more$"):
            streams.add("a", made[3])
        streams.add("b", made[4])
        await settled()
        done = [task.done() for task in running]
        for connection, stream in (*(("a", each) for each in made[:4]), ("b", made[4])):
            streams.discard(connection, stream)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return done

    assert asyncio.run(run()) == [False, False, True, False, False]


def test_a_connection_has_a_maximum_age_only_where_configured():
    """Connections have no maximum age by default, else the option's, with the request timeout as grace period."""

    def ages(**config):
        found = dict(options(ServerConfig(bundle="unused", **config)))
        return [found.get(f"grpc.max_connection_age{part}_ms") for part in ("", "_grace")]

    assert ages() == [None, None]
    assert ages(grpc_max_connection_age_s=0.5, request_timeout_ms=2000) == [500, 2000]


def test_what_is_more_than_grpc_can_count_is_the_most_that_it_can():
    """Sizes and times beyond 32 bits are passed to gRPC as its largest value, since HTTP has no such limit."""
    large = ServerConfig(
        bundle="unused",
        max_body_bytes=10**12,
        grpc_max_connection_age_s=1e-9,
        request_timeout_ms=1e300,
    )

    found = dict(options(large))

    assert found["grpc.max_receive_message_length"] == 2**31 - 1
    assert found["grpc.max_connection_age_ms"] == 1
    assert found["grpc.max_connection_age_grace_ms"] == 2**31 - 1
    grpc.server(ThreadPoolExecutor(1), options=options(large))
