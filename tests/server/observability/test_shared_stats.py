"""What the processes of one server tell each other."""

import asyncio
import dataclasses
import os

import numpy as np
from pytest import fixture

from server.config import ServerConfig
from server.metrics import Metrics
from server.observability.shared_stats import PLACE_BYTES, SharedStats
from server.observability.snapshot import StatsSnapshot, merge
from server.workers import WorkerArgs
from tests.server.fakes import FakeModel, Gate, ask, serving


def figures(rows, *, memory=None, pid=1):
    """Make figures that are told apart by their rows."""
    metrics = Metrics()
    metrics.rows = rows
    return StatsSnapshot(metrics, rows, 0, 2, memory, (pid,))


@fixture
def boards():
    """The board as each of three processes sees it."""
    first = SharedStats(None, 3, 0)
    return [first, *(SharedStats(os.dup(first.fd), 3, place) for place in (1, 2))]


def rows_of(found):
    """Tell figures apart."""
    return [one.metrics.rows for one in found]


def test_a_process_reads_what_the_others_wrote(boards):
    """Each one sees the others' figures and not its own, the newest there are."""
    for board, rows in zip(boards, (10, 20, 30), strict=True):
        board.write(figures(rows))
    boards[1].write(figures(21))

    assert [rows_of(board.read_others()) for board in boards] == [[21, 30], [10, 30], [10, 21]]


def test_a_process_that_has_written_nothing_counts_for_nothing(boards):
    """Until it has joined, its place is empty."""
    boards[2].write(figures(30))

    assert rows_of(boards[0].read_others()) == [30]


def test_figures_that_are_half_written_are_not_read(boards):
    """Whoever reads in the middle of a write sees that, and goes by what it read before."""
    boards[1].write(figures(20))
    before = rows_of(boards[0].read_others())
    memory = os.pread(boards[0].fd, PLACE_BYTES, PLACE_BYTES)
    half = memory[:40] + bytes([memory[40] ^ 1]) + memory[41:]
    os.pwrite(boards[0].fd, half, PLACE_BYTES)

    assert before == rows_of(boards[0].read_others()) == [20]


def test_figures_that_do_not_fit_in_their_place_harm_no_other(boards):
    """They are left out."""
    boards[2].write(figures(30))
    large = figures(20)
    large.metrics.requests = {(str(n), "200"): 1 for n in range(PLACE_BYTES // 8)}
    boards[1].write(large)

    assert rows_of(boards[0].read_others()) == [30]


def test_figures_of_processes_add_up():
    """Sums, the processes' numbers, and memory where any of them knows its own."""
    found = merge([figures(1, pid=7), figures(2, memory=100, pid=8), figures(3, pid=9)])

    assert (found.metrics.rows, found.queued_rows, found.arrays) == (6, 6, 6)
    assert (found.memory, found.pids) == (100, (7, 8, 9))
    assert merge([figures(1)]).memory is None


def test_a_process_writes_its_figures_as_they_change(boards):
    """The others see a count a moment later, without having asked."""

    async def count():
        async with serving(FakeModel()) as service:
            keeping = asyncio.create_task(boards[1].publish(service, every_s=0))
            service.metrics.count_request("health", "200")
            for _ in range(100):
                await asyncio.sleep(0)
            keeping.cancel()

    asyncio.run(asyncio.wait_for(count(), 30))
    (seen,) = boards[0].read_others()

    assert seen.metrics.requests == {("health", "200"): 1}
    assert seen.pids == (os.getpid(),)


def test_a_process_writes_how_many_rows_wait(boards):
    """While nothing is answered the queue grows all the same, and the others see that."""

    async def wait():
        gate, model = Gate(), FakeModel()
        model.before = gate
        async with serving(model) as service:
            keeping = asyncio.create_task(boards[1].publish(service, every_s=0))
            first = asyncio.create_task(ask(service, {"x": np.ones((1, 2), np.float32)}))
            await gate.reached()
            while not boards[0].read_others():  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0)
            waiting = asyncio.create_task(ask(service, {"x": np.ones((1, 2), np.float32)}))
            while boards[0].read_others()[0].queued_rows != 1:  # noqa: ASYNC110 (likewise)
                await asyncio.sleep(0)
            gate.open(2)
            await asyncio.gather(first, waiting)
            keeping.cancel()

    asyncio.run(asyncio.wait_for(wait(), 30))


def test_everything_that_is_counted_comes_across(boards):
    """A process reads each of another's counts, as it would count them itself."""
    metrics = Metrics()
    metrics.count_inference("vertex", "200", 0.003)
    metrics.count_inference("grpc", "UNAVAILABLE", 0.2, "queue_full")
    metrics.count_request("health", "200")
    metrics.count_batch("b4", 4, 3, 3, (1.0, 1.25, 2.0, 2.125))
    metrics.count_padding(12, 3)
    metrics.queued.observe(0.1)
    metrics.nonfinite = 1
    boards[1].write(StatsSnapshot(metrics, 5, 1, 2, 100, (7,)))
    (seen,) = boards[0].read_others()

    assert seen.metrics == metrics
    blank = Metrics()
    for field in dataclasses.fields(Metrics):
        assert getattr(metrics, field.name) != getattr(blank, field.name), field.name
    assert (seen.queued_rows, seen.compiles, seen.arrays, seen.memory, seen.pids) == (
        *(5, 1, 2, 100),
        (7,),
    )


def test_orders_are_read_as_they_were_written():
    """What a process is told on its command line is what the first one meant."""
    orders = WorkerArgs(
        2, 5, ServerConfig(bundle="b", processes=3, page=False, max_queue_delay_ms=0.5)
    )

    assert WorkerArgs.read(orders.write()) == orders
