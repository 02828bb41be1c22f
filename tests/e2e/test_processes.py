"""A server of several processes: one address, one set of metrics, one exit."""

import asyncio
import itertools
import os
import select
import shutil
import signal
import time
from pathlib import Path

from pytest import fixture, mark

from server.config import ServerConfig
from server.observability.shared_stats import SharedStats
from server.processes.pool import WorkerArgs, WorkerPool
from tests.e2e.clients import ask_http
from tests.e2e.test_signals import signalling
from tests.serving import TIMEOUT_S, Served, free_port, start, started

pytestmark = mark.e2e

PROCESSES = ("--processes", "3")


@fixture
def served(wide_bundle):
    """A server of three processes, of this test's own."""
    with started("--bundle", str(wide_bundle), *PROCESSES) as served:
        yield served


def children(process):
    """Return the pids that a process has started, sorted."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, listed))


def listens(pid, port):
    """Whether a process listens on a port."""
    files = (Path("/proc/net") / name for name in ("tcp", "tcp6"))
    fields = [line.split() for file in files for line in file.read_text().splitlines()[1:]]
    sockets = {f"socket:[{f[9]}]" for f in fields if f[1].endswith(f":{port:04X}") and f[3] == "0A"}
    return any(link.readlink().name in sockets for link in Path(f"/proc/{pid}/fd").iterdir())


def test_every_process_listens_before_the_server_is_ready(served):
    """Once the server is ready, a connection may reach any of its processes, over HTTP and gRPC."""
    pids = [served.process.pid, *children(served.process)]

    assert len(pids) == 3
    assert all(listens(pid, port) for pid in pids for port in (served.port, served.grpc_port))
    assert served.end(signal.SIGTERM) == (0, "")


@mark.parametrize("starts", ["measures", "knows"])
def test_a_server_that_chooses_has_as_many_processes_as_it_says(wide_bundle, tmp_path, starts):
    """
    Whether it measures or knows from the start before, all that it chose listen once it is ready, nothing
    was compiled since, each answers rightly, and the first ends them all.
    """
    options = ("--bundle", str(wide_bundle), "--processes", "auto", "--cache-dir", str(tmp_path))
    if starts == "knows":
        with started(*options) as before:
            assert before.end(signal.SIGTERM) == (0, "")
    port, wrong = free_port(), []
    work = iter([(number, 1 + number % 5) for number in range(200)])

    async def ask():
        await asyncio.gather(*(ask_http(port, work, wrong) for _ in range(8)))

    with start(port, *options) as process:
        served = Served(process, port, -1)
        lines = list(itertools.takewhile(lambda line: "ready: " not in line, process.stdout))
        (said,) = (line for line in lines if "processes: " in line and ", since " in line)
        pids = [process.pid, *children(process)]
        listening = [listens(pid, port) for pid in pids]
        asyncio.run(asyncio.wait_for(ask(), TIMEOUT_S))
        compiled = served.counts()["hloserve_compiles_after_ready_total"]
        ended = served.end(signal.SIGTERM)

    assert f"processes: {len(pids)}, since " in said
    assert all(listening)
    assert (wrong, compiled) == ([], 0)
    assert ended == (0, "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids[1:])


def test_every_answer_is_its_own_and_counted_once(served):
    """Requests over many connections are answered correctly; the metrics are of all processes."""
    wrong = []
    work = iter([(number, 1 + number % 5) for number in range(600)])

    async def ask():
        await asyncio.gather(*(ask_http(served.port, work, wrong) for _ in range(30)))

    asyncio.run(asyncio.wait_for(ask(), TIMEOUT_S))

    assert wrong == []
    assert 600 in itertools.takewhile(in_time(), map(answered, itertools.repeat(served)))
    assert served.counts()["hloserve_compiles_after_ready_total"] == 0
    assert served.end(signal.SIGTERM) == (0, "")


def in_time():
    """Make a condition that holds for as long as a test may take."""
    end = time.monotonic() + TIMEOUT_S
    return lambda _: time.monotonic() < end


def answered(served):
    """Return the number of inferences that the server says it has answered."""
    counts = served.counts()
    name = "hloserve_request_duration_seconds_count"
    return sum(value for key, value in counts.items() if key.startswith(name))


def test_sigterm_under_load_loses_nothing(wide_bundle):
    """Every process drains, and answers its accepted requests; then all of them have exited."""
    wrong = []

    async def ask(served):
        work = signalling(served.process, after=500)
        asking = (ask_http(served.port, work, wrong, until_closing=True) for _ in range(24))
        await asyncio.gather(*asking)

    delay = {"HLOSERVE_DRAIN_DELAY_S": "2"}
    with started("--bundle", str(wide_bundle), *PROCESSES, **delay) as served:
        others = children(served.process)
        asyncio.run(asyncio.wait_for(ask(served), TIMEOUT_S))
        ended = served.end()

    assert wrong == []
    assert ended == (0, "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)


def test_a_process_that_is_killed_ends_the_server(served):
    """If a worker is lost the server exits, rather than run with fewer processes; its status is the worker's."""
    lost, other = children(served.process)
    waiting = os.pidfd_open(other)

    os.kill(lost, signal.SIGKILL)
    status, errors = served.end()

    assert (status, errors) == (128 + signal.SIGKILL, "")
    assert f"process {lost} ended with status 137" in served.log
    assert select.select([waiting], [], [], TIMEOUT_S)[0]
    os.close(waiting)


def test_processes_end_with_the_first(served):
    """No process keeps the port, however the first one ended."""
    others = children(served.process)
    waiting = [os.pidfd_open(pid) for pid in others]

    served.process.kill()

    assert all(select.select([each], [], [], TIMEOUT_S)[0] for each in waiting)
    for each in waiting:
        os.close(each)


@mark.parametrize("imported", ["", "numpy"])
def test_an_interrupt_while_a_worker_starts_is_no_traceback(capfd, imported):
    """A worker that is interrupted while it starts ends by the signal, without a traceback."""
    stats = SharedStats(None, 2, 0)
    worker, line = WorkerPool._start(WorkerArgs(1, stats.fd, ServerConfig(bundle="none")))
    with line, worker:
        while imported not in Path(f"/proc/{worker.pid}/maps").read_text():
            assert worker.poll() is None
        worker.send_signal(signal.SIGINT)

    assert worker.returncode == -signal.SIGINT
    assert capfd.readouterr() == ("", "")


def test_a_worker_reads_its_arguments():
    """What the first process writes on a worker's command line is that worker's configuration."""
    args = WorkerArgs(3, 7, ServerConfig(bundle="some", processes=4))

    assert WorkerArgs.read(args.write()) == args


def test_a_server_that_is_stopped_while_processes_start_ends_well(wide_bundle):
    """Workers that do not listen yet have no requests to answer."""
    with start(free_port(), "--bundle", str(wide_bundle), *PROCESSES) as process:
        for line in process.stdout:
            if "concurrent batches" in line:
                break
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=TIMEOUT_S)

    assert (process.returncode, errors) == (0, "")
    assert out.endswith("INFO stopped\n")


def test_a_bundle_that_cannot_be_opened_ends_all_processes_with_one_error(wide_bundle, tmp_path):
    """Workers that wait for the bundle exit without a message of their own."""
    bundle = shutil.copytree(wide_bundle, tmp_path / "bundle")
    next(bundle.glob("programs/*.exported")).write_bytes(b"damaged")

    with start(free_port(), "--bundle", str(bundle), *PROCESSES) as process:
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 3
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")


def test_the_port_of_several_processes_is_not_shared_with_another_server(served, wide_bundle):
    """A second server on the same port is refused."""
    with start(served.port, "--bundle", str(wide_bundle), *PROCESSES) as process:
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 2
    assert errors == (
        f"error: listen on 127.0.0.1 port {served.port}: Address already in use; "
        "pass another --port\n"
    )
    assert served.end(signal.SIGTERM) == (0, "")
