"""What runs together, when and on which thread, as requests observe it; the rules are in test_launch_policy."""

import asyncio
import threading

import numpy as np

from tests.server.batching.calls import asked, begun, on_a_loop, ran, rows, sums, waiting
from tests.server.fakes import ECHO, FakeModel, Gate, ask, serving


@on_a_loop
async def test_a_lone_request_is_answered_at_once(model):
    """Without concurrent requests a request runs by itself in the smallest bucket."""
    async with serving(model) as service:
        assert await sums(asked(service, 7)) == [7.0]

    assert ran(model) == [(1, [7.0])]


@on_a_loop
async def test_requests_that_wait_while_the_device_is_busy_share_a_batch(model, gate):
    """While one batch runs the next one fills, in order of arrival."""
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        others = [asked(service, 2), asked(service, 3, 4)]
        await begun()
        gate.open(runs=2)

        assert await sums(first) == [1.0]
        assert [await sums(each) for each in others] == [[2.0], [3.0, 4.0]]

    assert ran(model) == [(1, [1.0]), (4, [2.0, 3.0, 4.0, 4.0])]


@on_a_loop
async def test_a_batch_that_is_known_to_be_quick_runs_on_the_loops_own_thread():
    """Handing a batch over and back costs more than a quick one takes; a slow one is handed over."""
    threads = []
    model = FakeModel(costs={1: 400.0, 4: 900.0})  # µs
    model.before = lambda _: threads.append(threading.current_thread())
    async with serving(model, inline_s=0.0005) as service:
        assert await sums(asked(service, 1)) == [1.0]
        assert await sums(asked(service, 1, 2, 3)) == [1.0, 2.0, 3.0]

    assert threads[0] is threading.current_thread()
    assert threads[1] is service._scheduler.executors[0]._threads[0]


@on_a_loop
async def test_a_program_whose_time_depends_on_its_inputs_never_runs_on_the_loops_thread():
    """However quick it was when it was measured, a data-dependent loop may take for ever on the next input."""
    threads = []
    model = FakeModel()
    model.loops = True
    model.before = lambda _: threads.append(threading.current_thread())
    async with serving(model, inline_s=1.0) as service:
        assert await sums(asked(service, 1, 2)) == [1.0, 2.0]

    assert threads == [service._scheduler.executors[0]._threads[0]]


@on_a_loop
async def test_a_quick_batch_runs_on_the_devices_thread_where_an_entrance_needs_the_loop():
    """Rows that arrived by gRPC do not block the loop; requests behind them may run inline again."""
    ran_on = []
    model = FakeModel()
    model.before = lambda _: ran_on.append(threading.current_thread().name)
    async with serving(model, inline_s=1.0) as service:
        for prefer_thread in (True, False):
            done = asyncio.get_running_loop().create_future()
            parts = [model.checker.check(rows(1))]
            service.submit(parts, done.set_result, prefer_thread=prefer_thread)
            await done
            await begun()

    assert ran_on == ["device", threading.current_thread().name]


@on_a_loop
async def test_requests_of_one_turn_of_the_loop_share_a_batch(model):
    """A batch is launched once the loop has read all requests that it has received."""
    async with serving(model, inline_s=1.0) as service:
        requests = [asked(service, n) for n in (1, 2, 3, 4, 5)]

        assert [await sums(each) for each in requests] == [[1.0], [2.0], [3.0], [4.0], [5.0]]

    assert ran(model) == [(4, [1.0, 2.0, 3.0, 4.0]), (1, [5.0])]


@on_a_loop
async def test_rows_run_in_one_batch_where_several_would_save_the_device_less_than_they_cost():
    """A program that takes a little longer than two smaller ones still spares the loop a batch."""
    model = FakeModel(buckets=(1, 2), costs={1: 10.0, 2: 30.0})
    async with serving(model) as service:
        assert [await sums(r) for r in (asked(service, 1), asked(service, 2))] == [[1], [2]]

    assert [batch for batch, _ in model.ran] == [2]


@on_a_loop
async def test_rows_run_in_several_batches_where_that_saves_more_than_these_cost():
    """A program that takes much longer than two smaller ones is not worth it."""
    model = FakeModel(buckets=(1, 2), costs={1: 10.0, 2: 300.0})
    async with serving(model) as service:
        assert [await sums(r) for r in (asked(service, 1), asked(service, 2))] == [[1], [2]]

    assert [batch for batch, _ in model.ran] == [1, 1]


@on_a_loop
async def test_rows_that_depend_on_each_other_run_in_the_smallest_bucket_that_holds_them():
    """Their answer must not depend on which program happened to be quicker at start."""
    model = FakeModel(buckets=(2, 4), costs={2: 900.0, 4: 10.0}, row_mixing=("padding",))
    async with serving(model) as service:
        assert await sums(asked(service, 1, 2)) == [1.0, 2.0]

    assert ran(model) == [(2, [1.0, 2.0])]


@on_a_loop
async def test_what_comes_while_the_device_is_busy_waits_for_it(gate, model):
    """No batch runs inline while the device's thread has one."""
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        service._scheduler._policy._inline_stall_s = dict.fromkeys([((), 1), ((), 4)], 60.0)
        second = asked(service, 2)
        await begun()

        assert waiting(service) == 1
        gate.open(runs=2)
        assert [await sums(each) for each in (first, second)] == [[1.0], [2.0]]


@on_a_loop
async def test_a_device_may_have_several_batches_at_once(model, gate):
    """With two concurrent batches the second one is launched while the first still runs."""
    async with serving(model, max_running=2) as service:
        first = asked(service, 1)
        await gate.reached()
        second = asked(service, 2)
        await begun()
        third = asked(service, 3)
        await begun()

        assert waiting(service) == 1  # The second request's row is on the device.
        gate.open(runs=3)
        assert [await sums(each) for each in (first, second, third)] == [[1.0], [2.0], [3.0]]


@on_a_loop
async def test_requests_wait_for_a_batch_where_a_delay_is_configured(model):
    """With a delay a bucket is filled before it runs, and is run as soon as it is full."""
    async with serving(model, queue_delay_s=3600.0) as service:
        requests = [asked(service, n) for n in (1, 2, 3)]
        await begun()
        assert model.ran == []
        requests.append(asked(service, 4))

        assert [await sums(each) for each in requests] == [[1.0], [2.0], [3.0], [4.0]]

    assert ran(model) == [(4, [1.0, 2.0, 3.0, 4.0])]


@on_a_loop
async def test_a_lone_request_is_run_when_its_delay_is_over(model):
    """A delay without further requests ends by itself."""
    async with serving(model, queue_delay_s=0.001) as service:
        assert await sums(asked(service, 1)) == [1.0]
        assert await sums(asked(service, 2, 3)) == [2.0, 3.0]


@on_a_loop
async def test_requests_of_a_model_that_mixes_rows_run_alone():
    """Where rows depend on each other, requests that wait together still do not share a batch."""
    model = FakeModel(row_mixing=("b4",))
    model.before = gate = Gate()
    async with serving(model) as service:
        requests = [asked(service, n) for n in (1, 2, 3)]
        await gate.reached()
        gate.open(runs=3)

        assert [await sums(each) for each in requests] == [[1.0], [2.0], [3.0]]

    assert [bucket for bucket, _ in model.ran] == [1, 1, 1]


@on_a_loop
async def test_requests_of_several_lengths_share_a_batch_where_that_is_cheaper():
    """A short request joins a long one's batch and gets its answer in its own length."""
    model = FakeModel(signature=ECHO)
    model.before = gate = Gate()

    def ids(*row):
        return {"ids": np.array([row], np.int32)}

    async with serving(model) as service:
        first = asyncio.ensure_future(ask(service, ids(1)))
        await gate.reached()
        short = asyncio.ensure_future(ask(service, ids(1, 2)))
        long = asyncio.ensure_future(ask(service, ids(1, 2, 3, 4, 5)))
        await begun()
        gate.open(runs=2)
        answers = [(await each).outputs for each in (first, short, long)]

    assert [a["echo"].tolist() for a in answers] == [[[1]], [[1, 2]], [[1, 2, 3, 4, 5]]]
    assert [a["total"].tolist() for a in answers] == [[1], [3], [15]]
    assert [(bucket, len(rows[0])) for bucket, rows in model.ran] == [(1, 4), (4, 8)]
