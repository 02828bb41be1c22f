"""Under any load, each request gets its own answer."""

import asyncio
import os
import resource
import signal
import socket

import numpy as np
from pytest import fixture, mark

from tests.e2e.clients import Calls, ask_grpc, ask_http, ask_stream, channel
from tests.serving import TIMEOUT_S

pytestmark = mark.e2e

ROWS = [[1, 2], [3, 4]]
# A few more than two buckets of 2: some are split.
MAX_ROWS = 12


def numbered(count, start=0):
    """Yield so many requests, one after the other: a number and the rows of each."""
    sizes = np.random.default_rng(start).integers(1, MAX_ROWS, count, endpoint=True)
    return iter(list(enumerate(sizes.tolist(), start)))


def run(call):
    """Run a coroutine that has to end."""
    return asyncio.run(asyncio.wait_for(call, TIMEOUT_S))


def test_ten_thousand_requests_get_their_own_answers(wide_server):
    """Of 10,000 requests, 200 at a time in every dialect and over gRPC, each gets its own rows."""
    before, wrong = wide_server.counts(), []

    async def ask():
        http, grpc, stream = numbered(7000), numbered(1500, 7000), numbered(1500, 8500)
        async with channel(wide_server.grpc_port) as opened:
            calls = Calls(opened)
            await asyncio.gather(
                *(ask_http(wide_server.port, http, wrong) for _ in range(120)),
                *(ask_grpc(calls, grpc, wrong) for _ in range(40)),
                ask_stream(calls, stream, wrong, at_once=40),
            )

    run(ask())

    after = wide_server.counts()
    spent = {name: after[name] - before.get(name, 0) for name in after}
    asked = [*numbered(7000), *numbered(1500, 7000), *numbered(1500, 8500)]
    assert wrong == []
    assert spent["hloserve_inferences_total"] == sum(count for _, count in asked)
    assert spent["hloserve_executions_total"] < spent["hloserve_inferences_total"]
    assert after["hloserve_compiles_after_ready_total"] == 0
    assert after["hloserve_queue_depth"] == 0


def test_a_server_that_was_stopped_in_its_tracks_answers_on(wide_server):
    """After SIGSTOP under load and SIGCONT no request is lost or mixed up."""
    wrong = []

    async def ask():
        work = stalling(wide_server.process, numbered(2000), at=(500, 1000, 1500))
        async with channel(wide_server.grpc_port) as opened:
            clients = [ask_http(wide_server.port, work, wrong) for _ in range(32)]
            clients += [ask_grpc(Calls(opened), work, wrong) for _ in range(8)]
            await asyncio.gather(*clients)

    run(ask())

    assert wrong == []
    assert wide_server.counts()["hloserve_queue_depth"] == 0


def stalling(process, work, at):
    """Yield requests, and stop a process for a moment before some requests of it."""
    for number, count in work:
        if number in at:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            asyncio.get_running_loop().call_later(0.2, process.send_signal, signal.SIGCONT)
        yield number, count


@fixture
def idle(wide_server):
    """A thousand connections that send no requests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    connections = [socket.create_connection(("127.0.0.1", wide_server.port)) for _ in range(1000)]
    yield connections
    for connection in connections:
        connection.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_idle_connections_delay_no_others(wide_server, idle):
    """With a thousand idle connections open a new one is answered, and so is the oldest."""
    wrong = []
    status, answer = wide_server.post({"instances": ROWS})

    async def ask():
        async with channel(wide_server.grpc_port) as opened:
            await ask_grpc(Calls(opened), numbered(10), wrong)

    run(ask())
    idle[0].sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\n\r\n")

    assert (status, answer) == (200, {"predictions": [[8, 9], [10, 11]]})
    assert wrong == []
    assert idle[0].recv(1 << 16).startswith(b"HTTP/1.1 200 ")
