"""A server with four devices, which a CPU is divided into: the same bits from each, and one that fails."""

import asyncio
import collections
import json

from pytest import mark, param

from tests.e2e.clients import Connection
from tests.serving import TIMEOUT_S, serving, start, started

pytestmark = mark.e2e

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
NAMES = {f"cpu:{i}" for i in range(4)}
INPUTS = 5

# The server, but programs take longer, so that batches meet on several devices.
SLOW = """
import runpy, threading
from runtime.program import Program

call = Program.call

def slowly(*arguments):
    threading.Event().wait(0.003)
    return call(*arguments)

Program.call = slowly
runpy.run_module("server", run_name="__main__", alter_sys=True)
"""
# The server, one of whose devices fails, or hangs, after it has served.
BREAKS = """
import runpy, threading
from runtime.errors import ExecutionError
from runtime.model import Model

run, canary = Model.run, Model.canary

def breaks(self, program, arrays):
    if arrays[0].flat[0] == 1001 or self.device_name != "cpu:2":
        return run(self, program, arrays)
    if arrays[0].flat[0] == 1002:
        threading.Event().wait()
    if arrays[0].flat[0] == 1003:
        raise ExecutionError("INTERNAL: an illegal address was read")
    return run(self, program, arrays)

def broken(self):
    if self.device_name == "cpu:2":
        raise ExecutionError("INTERNAL: an illegal address was read")
    return canary(self)

Model.run, Model.canary = breaks, broken
runpy.run_module("server", run_name="__main__", alter_sys=True)
"""


def ask_all(port, numbers, clients, ok=(200,)):
    """Ask over so many connections; return for each request its number, status, headers and body."""
    work, found = iter(numbers), []

    async def one():
        async with Connection(port) as connection:
            for number in work:
                row = [number, 0.25 * number, -1.5, 3.0]
                body = json.dumps({"instances": [row]}).encode()
                try:
                    answer = await connection.ask("/predict", body, "X-Hloserve-Evidence: 1\r\n")
                except (asyncio.IncompleteReadError, ConnectionError):
                    return  # The server has exited.
                found.append((number, *answer))

    async def everyone():
        await asyncio.gather(*(one() for _ in range(clients)))

    asyncio.run(asyncio.wait_for(everyone(), TIMEOUT_S))
    assert {status for _, status, _, _ in found} <= set(ok)
    return found


@mark.parametrize(
    ("command", "clients"),
    [param(SLOW, 48, id="on threads"), param(None, 12, id="inline"), param(SLOW, 3, id="alone")],
)
def test_under_load_every_device_answers_with_the_same_bits(classifier_bundle, command, clients):
    """2,000 requests are answered by four devices, and an input in a bucket gets the same bits from each of them."""
    more = {"command": ("-c", command)} if command else {}
    with serving("--bundle", str(classifier_bundle), "--devices", "all", **FOUR, **more) as served:
        found = ask_all(served.port, [i % INPUTS for i in range(2000)], clients)
        counts = served.counts()

    answers, devices = collections.defaultdict(set), collections.defaultdict(set)
    for number, _, headers, body in found:
        key = number, headers["x-hloserve-bucket"]
        answers[key].add(body)
        devices[key].add(headers["x-hloserve-device"])
    assert len(found) == 2000
    assert {key: len(bodies) for key, bodies in answers.items()} == dict.fromkeys(answers, 1)
    assert set().union(*devices.values()) == NAMES
    ran = {name: counts[f'hloserve_device_executions_total{{device="{name}"}}'] for name in NAMES}
    assert all(ran.values())
    assert sum(ran.values()) == counts["hloserve_executions_total"]
    assert counts["hloserve_compiles_after_ready_total"] == 0
    assert counts["hloserve_queue_depth"] == 0


@mark.parametrize(
    ("number", "reason"),
    [
        param(1002, "device cpu:2 hangs", id="hangs"),
        param(1003, "device cpu:2: 3 batches failed one after the other", id="fails"),
    ],
)
def test_a_device_that_fails_ends_the_server_and_is_named(classifier_bundle, number, reason):
    """Even while the other devices answer, the server exits with status 5 and the device's name."""
    options = ("--devices", "0,1,2,3", "--device-timeout-s", "1", "--drain-timeout-s", "5")
    command = ("-c", BREAKS)
    with started("--bundle", str(classifier_bundle), *options, command=command, **FOUR) as served:
        ask_all(served.port, [number] * 400, 8, ok=(200, 500, 503))
        status, _ = served.end()

    assert status == 5
    assert f"CRITICAL giving up: {reason}" in served.log


@mark.parametrize(
    ("options", "status", "line"),
    [
        param(
            ("--devices", "0,7"),
            5,
            "error: device 'cpu:7': expected one of ['cpu:0', 'cpu:1', 'cpu:2', 'cpu:3'], got none "
            "(no such index)",
            id="missing",
        ),
        param(
            ("--devices", "all", "--processes", "2"),
            5,
            "error: processes: expected 1 with 4 devices, each of which one process has, got 2",
            id="processes",
        ),
    ],
)
def test_devices_that_cannot_be_had_end_the_server_with_one_line(
    classifier_bundle, options, status, line
):
    """A missing device is never replaced by another."""
    with start(0, "--bundle", str(classifier_bundle), *options, **FOUR) as process:
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert (process.returncode, errors) == (status, f"{line}\n")
