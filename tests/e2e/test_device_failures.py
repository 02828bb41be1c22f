"""A device that fails for good ends the real process, with a status; no request waits for ever."""

import asyncio
import contextlib
import itertools
import signal
import socket

import jax.numpy as jnp
import numpy as np
from jax import lax
from pytest import fixture, mark

from tests.e2e.clients import Connection
from tests.server.http_harness import read_answer, request
from tests.serving import TIMEOUT_S, started

pytestmark = mark.e2e

# The server, whose model behaves as the first number of a batch says.
COMMAND = """
import runpy, threading
from runtime.errors import ExecutionError
from runtime.model import Model

run, canary, broken = Model.run, Model.canary, threading.Event()

def fails(self, program, arrays):
    number = int(arrays[0].flat[0])
    if number == 1001:
        print("hanging", flush=True)
        threading.Event().wait()
    if number == 1002:
        broken.set()
    if broken.is_set():
        raise ExecutionError("INTERNAL: an illegal address was read")
    return run(self, program, arrays)

def fails_too(self):
    if broken.is_set():
        raise ExecutionError("INTERNAL: an illegal address was read")
    return canary(self)

Model.run, Model.canary = fails, fails_too
runpy.run_module("server", run_name="__main__", alter_sys=True)
"""
# Before that: a batch in place has next to no time.
HURRIED = """
import server.batching.launch_policy
server.batching.launch_policy._MIN_INLINE_STALL_S = 0.2
server.batching.launch_policy._INLINE_STALL_FACTOR = 1
"""
# Before that: programs take so long that they run on the device's thread, one after the other.
SLOW = """
import threading
from runtime.program import Program

call, one_by_one = Program.call, threading.Lock()

def slowly(*arguments):
    with one_by_one:
        threading.Event().wait(0.005)
    return call(*arguments)

Program.call = slowly
"""
HANGS, BREAKS = 1001, 1002
HANGS_FOR_REAL = 1013
EXIT_DEVICE = 5


@fixture
def served(wide_bundle):
    """A server whose device can be made to fail; a batch may take a second."""
    options = ("--device-timeout-s", "1", "--drain-timeout-s", "5")
    with started("--bundle", str(wide_bundle), *options, command=("-c", COMMAND)) as served:
        yield served


def ask(served, number, times=1):
    """Send so many requests at once; return the statuses, None where there was no response."""

    async def one():
        async with Connection(served.port) as connection:
            body = b'{"instances": [[%d, 0]]}' % number
            try:
                return (await connection.ask("/predict", body))[0]
            except (asyncio.IncompleteReadError, ConnectionError):
                return None

    async def all_of_them():
        return await asyncio.gather(*(one() for _ in range(times)))

    return asyncio.run(asyncio.wait_for(all_of_them(), TIMEOUT_S))


def test_a_device_that_hangs_ends_the_process(served):
    """A waiting request is refused or cut off, and the process exits with the status for a lost device."""
    good = ask(served, 9)
    statuses = ask(served, HANGS, times=8)
    status, errors = served.end()

    assert good == [200]
    assert set(statuses) <= {503, None}
    assert (status, errors) == (EXIT_DEVICE, "")
    assert "device cpu:0 hangs" in served.log


def test_a_quick_batch_that_hangs_ends_the_process_sooner(wide_bundle):
    """The loop serves no request while it runs a batch inline: that has a time limit of its own, far below an hour."""
    options = ("--device-timeout-s", "3600")
    command = ("-c", HURRIED + COMMAND)
    with started("--bundle", str(wide_bundle), *options, command=command) as served:
        statuses = ask(served, HANGS)
        status, errors = served.end()

    assert statuses == [None]
    assert (status, errors) == (EXIT_DEVICE, "")
    assert "CRITICAL device cpu:0 hangs: a batch ran inline for 0.2 s" in served.log


def spin(params, x):
    """Add a param, but loop for ever where a row begins with 1013."""
    x = lax.while_loop(lambda c: (c[:, 0] == HANGS_FOR_REAL).any(), jnp.abs, x)
    return x + params["seven"]


@fixture(scope="session")
def spinning_bundle(exported):
    """x float32[_, 2] plus 7; buckets 1, 2; loops for ever on one value."""
    seven = {"seven": np.full(2, 7, np.float32)}
    return exported("spinning", spin, seven, inputs=["x:float32[_,2]"], buckets=(1, 2))


def test_a_program_that_loops_for_ever_leaves_the_loop_to_answer(spinning_bundle):
    """While the device runs in an endless loop the server reports that it is live, and how many requests wait."""
    options = ("--device-timeout-s", "3600")
    with (
        started("--bundle", str(spinning_bundle), *options) as served,
        contextlib.ExitStack() as stack,
    ):
        good = ask(served, 9)
        numbers = itertools.chain([HANGS_FOR_REAL], itertools.repeat(9))
        # Some may join the first one's batch; those behind it wait.
        while served.counts()["hloserve_queue_depth"] < 1:
            connection = socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S)
            stack.enter_context(connection)
            body = b'{"instances": [[%d, 0]]}' % next(numbers)
            connection.sendall(request("/predict", body))
        alive = served.get("/v2/health/live")

    assert good == [200]
    assert alive == '{"live":true}'


def test_a_program_that_loops_for_ever_ends_the_process_in_its_time(spinning_bundle):
    """A batch that does not return within --device-timeout-s means that the device is lost."""
    options = ("--device-timeout-s", "1")
    with started("--bundle", str(spinning_bundle), *options) as served:
        statuses = ask(served, HANGS_FOR_REAL)
        status, errors = served.end()

    assert set(statuses) <= {503, None}
    assert (status, errors) == (EXIT_DEVICE, "")
    assert "CRITICAL giving up: device cpu:0 hangs" in served.log


def test_a_device_that_keeps_failing_ends_the_process(served):
    """If batch after batch fails, and the canary too, the device is broken: the server exits instead of returning 500s."""
    statuses = [*ask(served, BREAKS), *ask(served, 9), *ask(served, 9)]
    status, errors = served.end()

    assert statuses == [500, 500, 500]
    assert (status, errors) == (EXIT_DEVICE, "")
    assert "CRITICAL giving up: device cpu:0: 3 batches failed one after the other" in served.log


def test_what_is_not_answered_in_time_is_refused_at_the_end(wide_bundle):
    """After the drain timeout a waiting request gets 503, and the exit status is 1."""
    options = ("--drain-timeout-s", "0.5")
    command = ("-c", SLOW + COMMAND)
    with (
        started("--bundle", str(wide_bundle), *options, command=command) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as running,
        socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as waiting,
    ):
        running.sendall(request("/predict", b'{"instances": [[%d, 0]]}' % HANGS))
        next(line for line in served.process.stdout if line == "hanging\n")
        waiting.sendall(request("/predict", b'{"instances": [[9, 0]]}'))
        while served.counts()["hloserve_queue_depth"] < 1:
            pass
        ended = served.end(signal.SIGTERM)
        answers = [read_answer(connection) for connection in (running, waiting)]

    assert ended == (1, "")
    assert [(status, body["code"]) for status, _, body in answers] == [(503, "draining")] * 2
    assert "stopping with 2 requests unanswered" in served.log
