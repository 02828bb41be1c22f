"""Requests that exceed their deadline, or whose callers cancel them."""

import asyncio
import itertools
import time

from pytest import mark, raises

from server.errors import (
    DeadlineExceeded,
)
from tests.server.batching.calls import asked, begun, on_a_loop, ran, rows, sums, waiting
from tests.server.fakes import ask, serving


@on_a_loop
async def test_a_deadline_in_the_queue_is_kept(model, gate):
    """A request whose deadline passes while it waits is refused, frees its place and never runs."""
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        late, patient = asked(service, 2, timeout_s=0.01), asked(service, 3)
        with raises(DeadlineExceeded) as refusal:
            await late

        assert waiting(service) == 1
        gate.open(runs=2)
        assert [await sums(each) for each in (first, patient)] == [[1.0], [3.0]]

    assert str(refusal.value) == "no answer within 10 ms"
    assert ran(model) == [(1, [1.0]), (1, [3.0])]


@on_a_loop
async def test_a_deadline_while_the_device_runs_is_kept(model, gate):
    """A request whose deadline passes on the device is refused; the result is dropped."""
    async with serving(model) as service:
        late = asked(service, 1, timeout_s=0.01)
        await gate.reached()
        with raises(DeadlineExceeded):
            await late
        gate.open(runs=2)

        assert await sums(asked(service, 2)) == [2.0]


@on_a_loop
async def test_the_services_own_limit_holds_beside_the_callers(model, gate):
    """The shorter of the two timeouts applies."""
    async with serving(model, timeout_s=0.01) as service:
        with raises(DeadlineExceeded) as own:
            await ask(service, rows(1))
        with raises(DeadlineExceeded) as generous:
            await ask(service, rows(1), 60.0)
        gate.open()

    assert str(own.value) == str(generous.value) == "no answer within 10 ms"


@on_a_loop
async def test_a_clock_that_jumps_changes_nothing(model, gate, monkeypatch):
    """Deadlines and delays follow a monotonic clock."""
    jumps = itertools.cycle([0.0, 1e12])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    async with serving(model, queue_delay_s=0.001) as service:
        first = asked(service, 1)
        await gate.reached()
        late, patient = asked(service, 2, timeout_s=0.01), asked(service, 3)
        with raises(DeadlineExceeded):
            await late
        gate.open(runs=2)

        assert [await sums(each) for each in (first, patient)] == [[1.0], [3.0]]


@mark.parametrize("timeout_s", [0.0, -1.0])
@on_a_loop
async def test_a_deadline_that_is_over_is_refused_at_once(model, timeout_s):
    """A request that arrives after its deadline does not join the queue."""
    async with serving(model) as service:
        with raises(DeadlineExceeded) as refusal:
            await ask(service, rows(1), timeout_s)

    assert str(refusal.value) == "the request's time was over before it was queued"
    assert model.ran == []


@on_a_loop
async def test_what_is_left_of_a_request_that_is_late_does_not_run(model, gate):
    """When a split request's deadline passes, its waiting rows leave the queue."""
    async with serving(model) as service:
        late = asked(service, 1, 2, 3, 4, 5, timeout_s=0.01)
        await gate.reached()
        with raises(DeadlineExceeded):
            await late

        assert waiting(service) == 0
        gate.open(runs=2)
        assert await sums(asked(service, 6)) == [6.0]

    assert ran(model) == [(4, [1.0, 2.0, 3.0, 4.0]), (1, [6.0])]


@on_a_loop
async def test_a_client_that_goes_takes_its_rows_with_it(model, gate):
    """A cancelled request leaves the queue before it runs; other requests are not affected."""
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        gone, staying = asked(service, 2), asked(service, 3)
        await begun()
        gone.cancel()
        await asyncio.wait([gone])

        assert gone.cancelled()
        assert waiting(service) == 1
        gate.open(runs=2)
        assert [await sums(each) for each in (first, staying)] == [[1.0], [3.0]]

    assert ran(model) == [(1, [1.0]), (1, [3.0])]


@on_a_loop
async def test_a_client_that_goes_while_the_device_runs_leaves_nothing_behind(model, gate):
    """Results of a cancelled request are dropped, and its batch-mate is answered."""
    async with serving(model, queue_delay_s=3600.0) as service:
        gone, staying = asked(service, 1), asked(service, 2, 3, 4)
        await gate.reached()
        gone.cancel()
        await asyncio.wait([gone])
        gate.open()

        assert await sums(staying) == [2.0, 3.0, 4.0]
        assert (len(service._requests), service._scheduler._running, waiting(service)) == (0, {}, 0)


@on_a_loop
async def test_ten_thousand_clients_that_go_leave_no_trace(model, gate):
    """Cancelling over and over leaks neither rows nor requests."""
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        for _ in range(100):
            gone = [asked(service, 2) for _ in range(100)]
            await begun()
            for each in gone:
                each.cancel()
            await asyncio.wait(gone)
            assert waiting(service) == 0
        gate.open()

        assert await sums(first) == [1.0]
        await service.drained()
        assert (len(service._requests), service._scheduler._running) == (0, {})

    assert len(model.ran) == 1
