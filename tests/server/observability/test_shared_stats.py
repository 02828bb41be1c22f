"""Shared statistics: what the processes of one server publish for each other."""

import asyncio
import dataclasses
import os

import numpy as np
from pytest import fixture

from server.config import ServerConfig
from server.metrics import Metrics
from server.observability.shared_stats import SLOT_BYTES, SharedStats
from server.observability.snapshot import StatsSnapshot, merge
from server.processes.pool import WorkerArgs
from tests.server.fakes import FakeModel, Gate, ask, serving


def snapshot(rows, *, memory=None, pid=1):
    """Return a snapshot that is recognized by its rows."""
    metrics = Metrics()
    metrics.rows = rows
    return StatsSnapshot(metrics, rows, 0, 2, memory, (pid,))


@fixture
def shared():
    """The shared memory as each of three processes sees it."""
    first = SharedStats(None, 3, 0)
    return [first, *(SharedStats(os.dup(first.fd), 3, slot) for slot in (1, 2))]


def rows_of(found):
    """Return the rows of each snapshot."""
    return [one.metrics.rows for one in found]


def test_a_process_reads_what_the_others_wrote(shared):
    """Each one sees the others' statistics and not its own, the newest there are."""
    for stats, rows in zip(shared, (10, 20, 30), strict=True):
        stats.write(snapshot(rows))
    shared[1].write(snapshot(21))

    assert [rows_of(stats.read_others()) for stats in shared] == [[21, 30], [10, 30], [10, 21]]


def test_a_process_that_has_written_nothing_counts_for_nothing(shared):
    """A slot that no process has written to is not read."""
    shared[2].write(snapshot(30))

    assert rows_of(shared[0].read_others()) == [30]


def test_snapshots_that_are_half_written_are_not_read(shared):
    """A read in the middle of a write is detected; the snapshot read before counts."""
    shared[1].write(snapshot(20))
    before = rows_of(shared[0].read_others())
    memory = os.pread(shared[0].fd, SLOT_BYTES, SLOT_BYTES)
    half = memory[:40] + bytes([memory[40] ^ 1]) + memory[41:]
    os.pwrite(shared[0].fd, half, SLOT_BYTES)

    assert before == rows_of(shared[0].read_others()) == [20]


def test_snapshots_that_do_not_fit_in_their_slot_harm_no_other(shared):
    """A snapshot that is too large for its slot is left out."""
    shared[2].write(snapshot(30))
    large = snapshot(20)
    large.metrics.requests = {(str(n), "200"): 1 for n in range(SLOT_BYTES // 8)}
    shared[1].write(large)

    assert rows_of(shared[0].read_others()) == [30]


def test_snapshots_of_processes_add_up():
    """Sums, the processes' numbers, and memory where any of them knows its own."""
    found = merge([snapshot(1, pid=7), snapshot(2, memory=100, pid=8), snapshot(3, pid=9)])

    assert (found.metrics.rows, found.queued_rows, found.arrays) == (6, 6, 6)
    assert (found.memory, found.pids) == (100, (7, 8, 9))
    assert merge([snapshot(1)]).memory is None


def test_a_process_writes_its_statistics_as_they_change(shared):
    """The other processes see a counter a moment later, without requesting it."""

    async def count():
        async with serving(FakeModel()) as service:
            publishing = asyncio.create_task(shared[1].publish(service, every_s=0))
            service.metrics.count_request("health", "200")
            for _ in range(100):
                await asyncio.sleep(0)
            publishing.cancel()

    asyncio.run(asyncio.wait_for(count(), 30))
    (seen,) = shared[0].read_others()

    assert seen.metrics.requests == {("health", "200"): 1}
    assert seen.pids == (os.getpid(),)


def test_a_process_writes_how_many_rows_wait(shared):
    """While no request is answered the queue still grows, and the other processes see that."""

    async def wait():
        gate, model = Gate(), FakeModel()
        model.before = gate
        async with serving(model) as service:
            publishing = asyncio.create_task(shared[1].publish(service, every_s=0))
            first = asyncio.create_task(ask(service, {"x": np.ones((1, 2), np.float32)}))
            await gate.reached()
            while not shared[0].read_others():  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0)
            waiting = asyncio.create_task(ask(service, {"x": np.ones((1, 2), np.float32)}))
            while shared[0].read_others()[0].queued_rows != 1:  # noqa: ASYNC110 (likewise)
                await asyncio.sleep(0)
            gate.open(2)
            await asyncio.gather(first, waiting)
            publishing.cancel()

    asyncio.run(asyncio.wait_for(wait(), 30))


def test_everything_that_is_counted_comes_across(shared):
    """A process reads each of another's counts, as it would count them itself."""
    metrics = Metrics()
    metrics.count_inference("vertex", "200", 0.003)
    metrics.count_inference("grpc", "UNAVAILABLE", 0.2, "queue_full")
    metrics.count_request("health", "200")
    metrics.count_batch("b4", "cpu:0", 4, 3, 3, (1.0, 1.25, 2.0, 2.125))
    metrics.count_padding(12, 3)
    metrics.queued.observe(0.1)
    metrics.nonfinite = 1
    metrics.count_preparation(0.0001, 12, 1)
    metrics.panics = 1
    metrics.row_errors = 2
    shared[1].write(StatsSnapshot(metrics, 5, 1, 2, 100, (7,)))
    (seen,) = shared[0].read_others()

    assert seen.metrics == metrics
    blank = Metrics()
    for field in dataclasses.fields(Metrics):
        assert getattr(metrics, field.name) != getattr(blank, field.name), field.name
    assert (seen.queued_rows, seen.compiles, seen.arrays, seen.memory, seen.pids) == (
        *(5, 1, 2, 100),
        (7,),
    )


def test_args_are_read_as_they_were_written():
    """Worker arguments are the same after a round trip through the command line."""
    args = WorkerArgs(
        2, 5, ServerConfig(bundle="b", processes=3, page=False, max_queue_delay_ms=0.5)
    )

    assert WorkerArgs.read(args.write()) == args
