"""How a real server ends: accepted requests are answered, and the exit status says how it went."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import urllib.error
from pathlib import Path

import grpc
from pytest import fixture, mark

from server.grpc.server import INFERENCE
from tests.e2e.clients import Calls, ask_http, channel, is_answer, message
from tests.server.http_harness import read_answer
from tests.serving import ROOT, TIMEOUT_S, Served, free_port, ready_line, start, started

pytestmark = mark.e2e

BODY = b'{"instances": [[1, 2]]}'
REQUEST = b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
ANSWER = {"predictions": [[8, 9]]}


@fixture
def served(wide_bundle):
    """A server of this test's own, which the test ends."""
    with started("--bundle", str(wide_bundle)) as served:
        yield served


def test_sigterm_under_load_loses_nothing(wide_bundle):
    """While it drains every request is answered correctly, until new connections are refused."""
    wrong = []

    async def ask(served):
        work = signalling(served.process, after=500)
        async with channel(served.grpc_port) as opened:
            await asyncio.gather(
                *(ask_http(served.port, work, wrong, until_closing=True) for _ in range(24)),
                *(ask_until_drained(Calls(opened), served, wrong) for _ in range(8)),
            )

    with started("--bundle", str(wide_bundle), HLOSERVE_DRAIN_DELAY_S="2") as served:
        asyncio.run(asyncio.wait_for(ask(served), TIMEOUT_S))
        ended = served.end()

    assert wrong == []
    assert ended == (0, "")
    assert served.log.endswith("INFO stopped\n")


def signalling(process, after):
    """Yield requests without end, and send SIGTERM before one of them."""
    for number in itertools.count():
        if number == after:
            process.send_signal(signal.SIGTERM)
        yield number, 1 + number % 5


async def ask_until_drained(calls, served, wrong):
    """Send calls over gRPC while the server reports ready, and a little longer."""
    for number in itertools.count(1_000_000):
        if not is_answer(await calls.unary(message(number, 2)), number, 2):
            wrong.append(number)
        if number % 5 == 0 and not await asyncio.to_thread(is_ready, served):
            return


def is_ready(served):
    """Send requests as a load balancer does."""
    try:
        return bool(served.get("/health"))
    except urllib.error.HTTPError as error:
        with error:
            return False


def test_a_request_whose_body_is_under_way_is_answered(served):
    """A request whose body completes only after SIGINT gets a response."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(REQUEST[:-5])
        served.post({"instances": []})  # By now the first request has been read.
        served.process.send_signal(signal.SIGINT)
        read_until(served.process, "received SIGINT")
        connection.sendall(REQUEST[-5:])
        status, headers, body = read_answer(connection)

    assert (status, body.get("code")) in ((503, "draining"), (200, None))
    assert headers["connection"] == "close"
    assert served.end() == (0, "")


def read_until(process, words):
    """Read the log until it has these words."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


@mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(served, number):
    """Either signal is exit status 0, idle connections or not."""
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(REQUEST)
        answer = read_answer(connection)[2]

        assert served.end(number) == (0, "")

    assert answer == ANSWER


def test_a_second_signal_ends_the_process_where_it_stands(wide_bundle):
    """A second signal skips the drain: exit status 1."""
    with started("--bundle", str(wide_bundle), HLOSERVE_DRAIN_DELAY_S="100") as served:
        served.process.send_signal(signal.SIGTERM)
        read_until(served.process, "draining")

        assert served.end(signal.SIGTERM) == (1, "")


def test_a_signal_while_it_loads_ends_the_process(wide_bundle):
    """A server that is not ready yet has no requests to wait for."""
    port = free_port()
    environ = {"HLOSERVE_DRAIN_DELAY_S": "100"}
    with start(port, "--bundle", str(wide_bundle), **environ) as process:
        read_until(process, "compiling")

        assert Served(process, port, -1).end(signal.SIGTERM) == (0, "")


@mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_another_process_opens_the_bundle_leaves_nothing(
    wide_bundle, tmp_path, number
):
    """The directory that both processes share is removed with the server, which does not wait for the other."""
    environ = {"HLOSERVE_REQUIRE_DIGEST": "", "TMPDIR": str(tmp_path)}
    port = free_port()
    with start(port, "--bundle", str(wide_bundle), **environ) as process:
        while not list(tmp_path.glob("hloserve-compiled-*")):
            assert process.poll() is None

        assert Served(process, port, -1).end(number) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_was_killed_leaves_its_ports_free(served, wide_bundle):
    """After SIGKILL in the middle of requests a new server takes the same ports at once."""
    with (
        socket.create_connection(("127.0.0.1", served.port)) as connection,
        grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as opened,
    ):
        call = opened.unary_unary(f"/{INFERENCE}/ModelInfer")
        call(message(1, 1).SerializeToString(), timeout=TIMEOUT_S)
        connection.sendall(REQUEST + REQUEST[:-5])
        assert read_answer(connection)[2] == ANSWER
        assert served.end(signal.SIGKILL)[0] == -signal.SIGKILL

        bundle, environ = str(wide_bundle), {"HLOSERVE_GRPC_PORT": str(served.grpc_port)}
        with start(served.port, "--bundle", bundle, **environ) as process:
            ready_line(process)
            answer = Served(process, served.port, served.grpc_port).post({"instances": [[1, 2]]})
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=TIMEOUT_S)

    assert answer == (200, ANSWER)
    assert process.returncode == 0


@mark.parametrize("arguments", [(), ("bench",), ("doctor",)])
def test_an_interrupt_while_it_imports_is_no_traceback(arguments):
    """Ctrl-C in the first seconds ends a command by the signal, without output."""
    command = [sys.executable, "-m", "server", *arguments, "--bundle", "nothing"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()

    assert (process.returncode, errors) == (-signal.SIGINT, b"")


SENT_BY_MISTAKE = [
    *("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGSTKFLT", "SIGPIPE"),
    *("SIGXFSZ", "SIGRTMIN", "SIGRTMAX", "SIGCHLD", "SIGURG", "SIGWINCH", "SIGCONT"),
]


def test_signals_that_mean_nothing_do_nothing(wide_bundle):
    """None of these signals ends a server of several processes, at any time, sent to one process or to all."""
    numbers = [getattr(signal, name) for name in SENT_BY_MISTAKE]
    port = free_port()
    with start(port, "--bundle", str(wide_bundle), "--processes", "2") as process:
        while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
        for number in numbers:
            process.send_signal(number)
        ready_line(process)
        served = Served(process, port, -1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for number in numbers:
            process.send_signal(number)
            for child in children:
                os.kill(int(child), number)
        answers = [served.post({"instances": [[1, 2]]}) for _ in range(10)]
        for child in children:  # as a runtime that ends all processes of a container does
            os.kill(int(child), signal.SIGTERM)
        ended = served.end(signal.SIGTERM)

    assert children
    assert answers == [(200, ANSWER)] * 10
    assert ended == (0, "")


@mark.parametrize("number", [signal.SIGHUP, signal.SIGPWR, signal.SIGXCPU])
def test_a_terminal_that_is_closed_ends_a_server_in_order(served, number):
    """So do a power failure and the end of its processor time, however often it is sent."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(REQUEST[:-5])
        served.process.send_signal(number)
        read_until(served.process, f"received {number.name}")
        served.process.send_signal(number)
        connection.sendall(REQUEST[-5:])
        status, headers, body = read_answer(connection)

    assert (status, body) in ((200, ANSWER), (503, body))
    assert headers["connection"] == "close"
    assert served.end() == (0, "")


NOHUP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "server", *sys.argv[1:]])
"""


def test_who_ignores_hangups_has_them_ignored(wide_bundle):
    """A server under nohup outlives its terminal."""
    with started("--bundle", str(wide_bundle), command=("-c", NOHUP)) as served:
        served.process.send_signal(signal.SIGHUP)
        answer = served.post({"instances": [[1, 2]]})
        ended = served.end(signal.SIGTERM)

    assert answer == (200, ANSWER)
    assert ended == (0, "")
