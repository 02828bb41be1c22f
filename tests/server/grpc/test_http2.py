"""Connections of the HTTP/2 front: what a client may do with them, and for how long.

The client is ngh2 as well, and its bytes are handed over here: no socket, and no clock.
"""

import asyncio

import ngh2
from pytest import fixture, mark

from server.batching.memory_budget import FREE_BYTES
from server.batching.service import Service
from server.config import ServerConfig
from server.grpc import http2_call, http2_connection
from server.grpc.http2_call import MAX_CHECKS
from server.grpc.http2_connection import (
    CONCURRENT_STREAMS,
    IDLE_CHECKS,
    PING_CHECKS,
    PONG_CHECKS,
)
from server.grpc.http2_server import Http2Server
from server.grpc.options import CONNECTIONS
from server.grpc.services import HEALTH
from server.grpc.stream import MAX_PENDING
from server.grpc.wire import frame
from tests.server.fakes import RecordedFailures
from tests.server.fakes import serving as ready
from tests.server.grpc_harness import FakeModel, rows
from tests.server.http2_harness import INFER, STREAM, Client

LIMIT = 1 << 20


@fixture
def play():
    """Run a scenario against a server that is ready; afterwards no call or byte is counted any more."""

    def run(scene, **config):
        async def whole():
            async with ready(FakeModel(), memory_bytes=4 * LIMIT) as service:
                full = ServerConfig(bundle="b", **{"max_body_bytes": LIMIT, **config})
                server = Http2Server(service, full)
                await scene(server)
                for connection in list(server._connections):
                    connection.connection_lost(None)
                assert service.memory.size == 0

        asyncio.run(whole())

    return run


def one(number=1, **options):
    """Return a request as bytes of a call."""
    return frame(rows(number, **options).SerializeToString())


async def checked(client, times):
    """Have a connection checked so many times, and hand over what it has to send."""
    for _ in range(times):
        client.connection.check_timeouts()
        await asyncio.sleep(0)
        client.exchange()


def test_answers_that_are_ready_together_leave_in_one_write(play):
    """The calls of a connection that share a batch are answered by one write."""

    async def scene(server):
        client = Client(server)
        await client.settle()
        streams = [client.call(data=one(n)) for n in range(3)]
        client.connection.data_received(client.h2.data_to_send())
        while not client.transport.writes:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0)
        writes = list(client.transport.writes)
        await client.settle()

        assert len(writes) == 1
        assert client.statuses == dict.fromkeys(streams, 0)

    play(scene)


@mark.parametrize("path", [INFER, STREAM, f"/{HEALTH}/Check"])
def test_a_message_that_never_comes_whole_ends_its_call(play, path):
    """A call whose message makes no progress is refused in the end, and its memory is freed."""

    async def scene(server):
        client = Client(server)
        stream = client.call(path, b"\0\0\0\1\0" + b"a" * 100, end=False)
        client.exchange()
        await checked(client, MAX_CHECKS - 1)
        assert stream not in client.statuses

        await checked(client, 1)

        assert client.statuses[stream] == 4
        assert client.texts[stream] == "message: expected all of it within 60 s"
        assert client.connection.received.size == 0

    play(scene)


def test_a_message_that_makes_progress_is_waited_for(play):
    """A large message may take any time, as long as 64 kB of it arrive each minute."""

    async def scene(server):
        client = Client(server)
        stream = client.call(data=(200_000).to_bytes(5), end=False)
        for _ in range(2):
            await checked(client, MAX_CHECKS - 1)
            client.h2.send_data(stream, bytes(70_000))
            client.exchange()

        assert stream not in client.statuses

    play(scene)


def test_messages_that_arrive_are_counted_and_bounded(play):
    """What all clients have sent of messages is within the budget; beyond it calls are refused."""

    async def scene(server):
        client = Client(server)
        streams = []
        for _ in range(5):
            streams.append(client.call(data=LIMIT.to_bytes(5) + bytes(LIMIT - 100), end=False))
            client.exchange()
        await client.settle()

        assert [client.statuses.get(stream) for stream in streams] == [None] * 4 + [14]
        assert client.texts[streams[-1]] == (
            f"bodies: expected at most {4 * LIMIT} bytes of all requests under way, got more"
        )
        # Small calls of another connection need nothing of the budget.
        other = Client(server)
        stream = other.call(f"/{HEALTH}/Check", frame(b""))
        other.exchange()
        assert other.statuses[stream] == 0

    play(scene)


def test_an_unread_answer_ends_its_call(play):
    """A call whose client opens no flow-control window for its response is reset, and the response is freed."""

    async def scene(server):
        client = Client(server, {ngh2.Setting.INITIAL_WINDOW_SIZE: 0})
        stream = client.call(f"/{HEALTH}/Check", frame(b""))
        client.exchange()
        await checked(client, MAX_CHECKS + 2)

        assert client.statuses == {stream: "reset"}
        assert client.connection.unread.size == 0

    play(scene)


def test_a_client_that_reads_nothing_is_closed(play):
    """A connection whose written bytes wait in the socket for a minute is closed."""

    async def scene(server):
        client = Client(server)
        client.exchange()
        client.connection.pause_writing()
        for _ in range(MAX_CHECKS):
            client.connection.check_timeouts()
        assert not client.transport.aborted
        client.connection.check_timeouts()
        assert client.transport.aborted

    play(scene)


def test_a_client_that_reads_nothing_has_little_kept_for_it(play):
    """While written bytes wait in the socket, pings are kept up to a limit, and calls up to theirs."""

    async def scene(server):
        client = Client(server)
        client.exchange()
        client.connection.pause_writing()
        for _ in range(200):
            client.call(data=one())
        client.connection.data_received(client.h2.data_to_send())
        assert len(client.connection._calls) <= CONCURRENT_STREAMS
        assert not client.transport.closed
        for _ in range(2000):
            client.h2.ping()
        client.connection.data_received(client.h2.data_to_send())
        assert client.transport.closed

    play(scene)


def test_a_compressed_message_is_refused(play):
    """A client that compresses gets UNIMPLEMENTED; the next message, as it is, is answered."""

    async def scene(server):
        client = Client(server)
        stream = client.call(data=b"\1" + one()[1:], grpc_encoding=b"gzip")
        plain = client.call(f"/{HEALTH}/Check", frame(b""), grpc_encoding=b"gzip")
        await client.settle()

        text = "message: expected no compression, got a compressed one"
        assert (client.statuses[stream], client.texts[stream]) == (12, text)
        assert client.statuses[plain] == 0

    play(scene)


def test_a_call_that_is_answered_early_stops_its_client(play):
    """A call that is refused before its message is complete gets its status, and its client stops sending."""

    async def scene(server):
        client = Client(server)
        stream = client.call(data=b"\0\xff\xff\xff\xff" + bytes(1000), end=False)
        client.exchange()

        assert client.statuses[stream] == 8
        assert client.texts[stream] == f"message: expected at most {LIMIT} bytes, got {2**32 - 1}"
        assert client.connection._calls == {}
        # Bytes that were in flight do no harm to the connection: another call is answered.
        other = client.call(f"/{HEALTH}/Check", frame(b""))
        client.exchange()
        assert client.statuses[other] == 0

    play(scene)


@mark.parametrize("pending", [0, MAX_PENDING])
def test_calls_that_are_reset_leave_the_window_to_others(play, monkeypatch, pending):
    """What a client has sent for calls that it resets, read or not, does not use up the connection's window."""
    monkeypatch.setattr(http2_call, "MAX_PENDING", pending)

    async def scene(server):
        client = Client(server)
        for path in (INFER, STREAM):
            for _ in range(12):
                client.call(path, one() + (500_000).to_bytes(5) + bytes(150_000), end=False)
                client.exchange()
                client.h2.reset_stream(client.h2.next_stream_id - 2)
                client.exchange()

        assert client.h2.remote_window_size > http2_connection.CONNECTION_WINDOW // 2

    play(scene)


def test_calls_beyond_the_limit_are_refused_by_the_protocol(play):
    """Calls beyond the limit of concurrent streams are refused with REFUSED_STREAM: they were not begun."""

    async def scene(server):
        client = Client(server)
        for _ in range(CONCURRENT_STREAMS):
            client.call(data=b"", end=False)
        client.exchange()
        assert len(client.connection._calls) == CONCURRENT_STREAMS

    play(scene)


@mark.parametrize(
    ("field", "value", "status"),
    [(":method", b"GET", "HTTP 415"), ("content-type", b"text/html", "HTTP 415")],
)
def test_what_is_no_call_is_refused_by_http(play, field, value, status):
    """A request from a browser gets an HTTP status, as the gRPC specification says."""

    async def scene(server):
        client = Client(server)
        fields = {":method": b"POST", ":scheme": b"http", ":path": b"/", ":authority": b"t"}
        fields |= {"content-type": b"application/grpc", field: value}
        stream = client.h2.send_request(
            [(name.encode(), text) for name, text in fields.items()], end_stream=True
        )
        client.exchange()
        assert client.statuses == {stream: status}

    play(scene)


@mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"grpc_timeout": b"soon"}, 3, "grpc-timeout: expected digits and a unit, as in 100m, got 'soon'"),
        ({"grpc_timeout": b"0n"}, 4, "the request's time was over before it was queued"),
    ],
)  # fmt: skip
def test_headers_that_cannot_be_met_refuse_a_call(play, fields, status, text):
    """A timeout that is invalid, or over, refuses the call before its message is read."""

    async def scene(server):
        client = Client(server)
        stream = client.call(data=one(), **fields)
        await client.settle()
        assert (client.statuses[stream], client.texts[stream]) == (status, text)

    play(scene)


def test_a_connection_that_is_silent_is_pinged_and_then_closed(play):
    """A connection that does not answer a ping is closed; one that answers stays open."""

    async def scene(server):
        client, gone = Client(server), Client(server)
        client.exchange()
        gone.exchange()
        await checked(client, PING_CHECKS + PONG_CHECKS + 10)
        for _ in range(PING_CHECKS + PONG_CHECKS):
            gone.connection.check_timeouts()
        assert not gone.transport.aborted
        gone.connection.check_timeouts()

        assert gone.transport.aborted
        assert not client.transport.aborted

    play(scene)


def test_a_connection_without_http2_is_closed(play):
    """A connection that sends nothing, or HTTP/1, is closed soon."""

    async def scene(server):
        nothing, other = Client(server), Client(server)
        other.connection.data_received(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n")
        for _ in range(PING_CHECKS + PONG_CHECKS + 1):
            nothing.connection.check_timeouts()

        assert other.transport.closed
        assert nothing.transport.aborted

    play(scene)


@mark.parametrize("config", [{"grpc_max_connection_age_s": 100.0}, {}], ids=["old", "idle"])
def test_a_connection_that_is_old_or_idle_is_closed_after_its_calls(play, monkeypatch, config):
    """Its client receives a GOAWAY, so that it opens another one, and its calls are answered first."""
    monkeypatch.setattr(http2_connection, "NOTICE_S", 0.0)

    async def scene(server):
        client = Client(server)
        stream = client.call(data=b"", end=False) if config else None
        client.exchange()
        checks = 0
        while not client.goaways:
            await checked(client, 1)
            checks += 1
            if stream is not None and checks == MAX_CHECKS // 2:
                client.h2.send_data(stream, one(), end_stream=True)
        while not client.transport.ended:
            await client.settle()

        assert checks in (range(90, 112) if config else [IDLE_CHECKS + 1])
        assert client.goaways[0] == 2**31 - 1
        assert client.statuses == ({stream: 0} if config else {})

    play(scene, **config)


def test_connections_beyond_the_limit_are_closed(play):
    """Of more connections than there may be the new ones are closed."""

    async def scene(server):
        server._connections.update(range(CONNECTIONS - 1))
        last, beyond = Client(server), Client(server)
        server._connections -= set(range(CONNECTIONS - 1))

        assert not last.transport.aborted
        assert beyond.transport.aborted

    play(scene)


def test_a_connection_that_arrives_as_the_server_stops_is_closed(play):
    """A connection that was accepted just before the port was closed does not delay the server's end."""

    async def scene(server):
        await server.leave(30)
        late = Client(server)

        assert late.transport.aborted

    play(scene)


def test_a_client_that_goes_leaves_nothing_behind(play):
    """Calls of a lost connection are cancelled, and their memory is freed."""

    async def scene(server):
        client = Client(server)
        client.call(data=LIMIT.to_bytes(5) + bytes(LIMIT // 2), end=False)
        client.call(STREAM, one() * 3, end=False)
        client.exchange()
        assert server.memory.size > LIMIT // 2 - FREE_BYTES - 1

        client.connection.connection_lost(ConnectionResetError())

        assert server.memory.size == 0
        assert server._service.metrics.requests["grpc", "CANCELLED"] == 3

    play(scene)


def test_a_flood_of_bad_messages_is_answered_one_by_one(play):
    """Thousands of messages that do not parse, in one read, are answered without a deep stack."""

    async def scene(server):
        client = Client(server)
        stream = client.call(STREAM, frame(b"\xff") * 3000)
        await client.settle()

        assert client.statuses == {stream: 0}
        text = b"message: expected a ModelInferRequest, got other bytes"
        assert client.messages[stream].count(text) == 3000

    play(scene)


def test_a_service_that_is_not_ready_refuses():
    """While no model is loaded calls are refused with UNAVAILABLE, as over the other front."""

    async def scene():
        service = Service(ServerConfig(bundle="b").limits, RecordedFailures())
        client = Client(Http2Server(service, ServerConfig(bundle="b")))
        stream = client.call(data=one())
        await client.settle()
        return client.statuses[stream], client.texts[stream]

    assert asyncio.run(scene()) == (14, "the model is still being loaded; try again shortly")
