"""The service on an event loop: requests in, rows out, nothing lost. The device is a fake."""

import asyncio
import functools
import gc
import itertools
import random
import threading
import time
import weakref

import numpy as np
from pytest import fixture, mark, param, raises

from runtime.errors import ExecutionError, SignatureMismatch
from server.batching.pending_request import InferenceMetadata, PendingRequest, TaskResult
from server.batching.service import Service, State
from server.errors import (
    DeadlineExceeded,
    Draining,
    NotReady,
    OutOfMemory,
    Overloaded,
    TooLarge,
)
from server.limits import Limits
from tests.server.fakes import ECHO, FakeModel, Gate, RecordedFailures, ask, serving


def on_a_loop(test):
    """Run a coroutine as a test, which ends after 30 s at the latest."""

    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(asyncio.wait_for(test(**fixtures), 30))

    return run


@fixture
def model():
    """A model with a bucket of 1 and one of 4."""
    return FakeModel()


@fixture
def gate(model):
    """Stands before every run of the model."""
    model.before = Gate()
    return model.before


def rows(*numbers):
    """Make the input of a request: a row [n, 0] for each number, whose sum is n."""
    return {"x": np.array([[n, 0] for n in numbers], np.float32).reshape(-1, 2)}


def asked(service, *numbers, timeout_s=None):
    """Begin a request."""
    return asyncio.ensure_future(ask(service, rows(*numbers), timeout_s))


async def sums(request):
    """Give what a request was answered."""
    return (await request).outputs["y"].tolist()


async def begun():
    """Let every request that was just made reach the queue, or the device if it is free."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def waiting(service):
    """Give the rows that wait."""
    return service._scheduler.queue.rows


def ran(model):
    """Give the bucket and the real and repeated numbers of every run."""
    return [(bucket, [row[0] for row in rows]) for bucket, rows in model.ran]


def failing(error, *numbers):
    """Make a model's `before` that raises on some numbers, or on all."""

    def before(rows):
        if not numbers or any(n in rows for n in numbers):
            raise error

    return before


@on_a_loop
async def test_a_lone_request_is_answered_at_once(model):
    """Where nobody else asks, a request runs by itself in the smallest bucket."""
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
    async with serving(model, in_place_s=0.0005) as service:
        assert await sums(asked(service, 1)) == [1.0]
        assert await sums(asked(service, 1, 2, 3)) == [1.0, 2.0, 3.0]

    assert threads[0] is threading.current_thread()
    assert threads[1] is service._scheduler.executor._threads[0]


@on_a_loop
async def test_a_program_whose_time_depends_on_its_inputs_never_runs_on_the_loops_thread():
    """However quick it was when it was measured, it may take for ever on what comes next."""
    threads = []
    model = FakeModel()
    model.loops = True
    model.before = lambda _: threads.append(threading.current_thread())
    async with serving(model, in_place_s=1.0) as service:
        assert await sums(asked(service, 1, 2)) == [1.0, 2.0]

    assert threads == [service._scheduler.executor._threads[0]]


@on_a_loop
async def test_a_quick_batch_runs_on_the_devices_thread_where_an_entrance_needs_the_loop():
    """Rows that came by gRPC leave the loop free, and those behind them have the loop again."""
    ran_on = []
    model = FakeModel()
    model.before = lambda _: ran_on.append(threading.current_thread().name)
    async with serving(model, in_place_s=1.0) as service:
        for prefer_thread in (True, False):
            done = asyncio.get_running_loop().create_future()
            parts = [model.checker.check(rows(1))]
            service.submit(parts, done.set_result, prefer_thread=prefer_thread)
            await done
            await begun()

    assert ran_on == ["device", threading.current_thread().name]


@on_a_loop
async def test_requests_of_one_turn_of_the_loop_share_a_batch(model):
    """A batch is launched once the loop has taken in all that it has received."""
    async with serving(model, in_place_s=1.0) as service:
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
    """Their answer must not follow from which program happened to be quicker at start."""
    model = FakeModel(buckets=(2, 4), costs={2: 900.0, 4: 10.0}, row_mixing=("padding",))
    async with serving(model) as service:
        assert await sums(asked(service, 1, 2)) == [1.0, 2.0]

    assert ran(model) == [(2, [1.0, 2.0])]


@on_a_loop
async def test_a_device_that_dies_in_place_is_given_up():
    """What is no error of a batch ends the process, on the loop's own thread as on the device's."""
    model, failures = FakeModel(), RecordedFailures()
    model.before = failing(SystemExit(0))
    async with serving(model, failures, in_place_s=1.0) as service:
        with raises(NotReady):
            await ask(service, rows(1))

        assert service.state is State.FAILED

    assert failures.reasons == ["the device died"]


@on_a_loop
async def test_a_body_is_freed_with_its_answer(model):
    """What a request holds does not wait for the next look for garbage: bodies are large."""
    gc.collect()
    gc.disable()
    try:
        async with serving(model, in_place_s=1.0) as service:
            for numbers in ((1,), (1, 2, 3, 4, 5)):
                answered = asyncio.Event()
                inputs = model.checker.check(rows(*numbers))
                held = weakref.ref(inputs.arrays[0])
                service.submit([inputs], lambda _, answered=answered: answered.set())
                del inputs
                await answered.wait()
                await begun()

                assert held() is None
    finally:
        gc.enable()


@on_a_loop
async def test_an_answer_that_nobody_can_take_leaves_its_batch_mates_theirs(model, caplog):
    """A caller's own failure to take its answer is logged, and the others get theirs."""

    def broken(_):
        raise RuntimeError("gone")

    async with serving(model, in_place_s=1.0) as service:
        service.submit([model.checker.check(rows(1))], broken)

        assert await sums(asked(service, 2)) == [2.0]

    assert "an answer could not be passed on" in caplog.text


@on_a_loop
async def test_what_comes_while_the_device_is_busy_waits_for_it(gate, model):
    """No batch runs in place while the device's thread has one."""
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
    """With two in flight the second batch is on its way while the first still runs."""
    async with serving(model, max_running=2) as service:
        first = asked(service, 1)
        await gate.reached()
        second = asked(service, 2)
        await begun()
        third = asked(service, 3)
        await begun()

        assert waiting(service) == 1  # the second request's row is with the device
        gate.open(runs=3)
        assert [await sums(each) for each in (first, second, third)] == [[1.0], [2.0], [3.0]]


@on_a_loop
async def test_requests_wait_for_company_where_they_are_told_to(model):
    """With a delay a bucket is filled before it runs, and is run as soon as it is full."""
    async with serving(model, queue_delay_s=3600.0) as service:
        requests = [asked(service, n) for n in (1, 2, 3)]
        await begun()
        assert model.ran == []
        requests.append(asked(service, 4))

        assert [await sums(each) for each in requests] == [[1.0], [2.0], [3.0], [4.0]]

    assert ran(model) == [(4, [1.0, 2.0, 3.0, 4.0])]


@on_a_loop
async def test_a_request_without_company_is_run_when_its_delay_is_over(model):
    """A window that nobody else joins closes by itself."""
    async with serving(model, queue_delay_s=0.001) as service:
        assert await sums(asked(service, 1)) == [1.0]
        assert await sums(asked(service, 2, 3)) == [2.0, 3.0]


@on_a_loop
async def test_a_request_larger_than_the_largest_bucket_is_split_and_joined(model):
    """Rows beyond the largest bucket run in several batches and come back in order."""
    numbers = [float(n) for n in range(9)]
    async with serving(model) as service:
        assert await sums(asked(service, *numbers)) == numbers

    assert ran(model) == [(4, numbers[:4]), (4, numbers[4:8]), (1, numbers[8:])]


@on_a_loop
async def test_no_rows_are_answered_without_the_device(model):
    """A request of zero rows gets outputs of zero rows, of the right dtype."""
    async with serving(model) as service:
        answer = await ask(service, rows())

    assert answer.outputs["y"].dtype == np.float32
    assert answer.outputs["y"].shape == (0,)
    assert answer.evidence == InferenceMetadata(0, 0, 0.0, 0.0)
    assert model.ran == []


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


@on_a_loop
async def test_a_request_larger_than_a_bucket_may_leave_its_mask_out():
    """A split request's bucketed axes and missing masks are those of the whole."""
    model = FakeModel(signature=ECHO)
    ids = np.arange(15, dtype=np.int32).reshape(5, 3)
    async with serving(model) as service:
        answer = await ask(service, {"ids": ids})
        nothing = await ask(service, {"ids": ids[:0]})

    assert answer.outputs["echo"].tolist() == ids.tolist()
    assert answer.outputs["total"].tolist() == ids.sum(axis=1).tolist()
    assert nothing.outputs["echo"].shape == (0, 3)


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
async def test_every_caller_gets_its_own_rows():
    """Of 10,000 requests of random sizes, 200 at a time, each gets exactly its own answer."""
    model = FakeModel(buckets=(1, 4, 16))
    numbers = itertools.count()
    sizes = random.Random(5)  # noqa: S311 (nobody has to guess it)
    wrong = []

    async def client(service):
        for _ in range(50):
            own = [float(next(numbers)) for _ in range(sizes.randint(1, 20))]
            if await sums(asked(service, *own)) != own:
                wrong.append(own)

    async with serving(model, queue_rows=200 * 20) as service:
        await asyncio.gather(*(client(service) for _ in range(200)))

    assert wrong == []
    assert len(model.ran) < 10_000  # they shared batches


@on_a_loop
async def test_an_answer_says_how_it_came_about(model, gate):
    """Evidence names the bucket, its padding, and where the time went."""
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        second, third = asked(service, 2), asked(service, 3, 4)
        await begun()
        gate.open(runs=2)
        first, second, third = [(await each).evidence for each in (first, second, third)]

    assert (first.bucket, first.padded_rows) == (1, 0)
    assert (second.bucket, second.padded_rows) == (third.bucket, third.padded_rows) == (4, 1)
    # They shared a run, and each waited through the first one's.
    assert second.compute_s == third.compute_s > 0.0
    assert second.queue_s >= third.queue_s > 0.0
    assert first.queue_s >= 0.0


def test_evidence_of_a_split_request_covers_all_its_batches(model):
    """Where several batches answered, the longest wait and the whole time on the device count."""
    three = model.checker.check(rows(1, 2, 3))
    request = PendingRequest([three], max_task_rows=2, arrived=0.0, done=print)
    first, second = (TaskResult((np.float32(sums),), None, 0) for sums in ([1, 2], [3]))

    request.add_result(1, second, 4, padded_rows=1, queue_s=0.5, run_s=1.0)
    left = request.remaining
    request.add_result(0, first, 2, padded_rows=0, queue_s=0.25, run_s=2.0)
    (part,), evidence = request.answer(model)

    assert (left, request.remaining) == (1, 0)
    assert part.outputs["y"].tolist() == [1.0, 2.0, 3.0]
    assert evidence == InferenceMetadata(2, 0, queue_s=0.5, compute_s=3.0)


@on_a_loop
async def test_inputs_that_do_not_fit_never_reach_the_queue(model):
    """A request is held against the signature before it joins anybody."""
    async with serving(model) as service:
        with raises(SignatureMismatch):
            await ask(service, {"x": np.zeros((1, 3), np.float32)})

        assert await sums(asked(service, 1)) == [1.0]

    assert len(model.ran) == 1


@mark.parametrize(
    "limits",
    [
        param({"request_rows": 3}, id="of-a-request"),
        param({"queue_rows": 3}, id="of-the-queue"),
    ],
)
@on_a_loop
async def test_the_row_limit_is_exact(model, limits):
    """As many rows as a request may have are answered, one more is too large for any queue."""
    async with serving(model, **limits) as service:
        assert await sums(asked(service, 1, 2, 3)) == [1.0, 2.0, 3.0]
        with raises(TooLarge) as refusal:
            await ask(service, rows(1, 2, 3, 4))

    assert str(refusal.value) == "rows: expected at most 3 in a request, got 4"


@on_a_loop
async def test_a_full_queue_refuses_at_once(model, gate):
    """Rows that do not fit are refused whole; those that wait are answered, and make room."""
    async with serving(model, queue_rows=5) as service:
        first = asked(service, 1)
        await gate.reached()
        second = asked(service, 2, 3, 4)
        await begun()
        with raises(Overloaded) as refusal:
            await ask(service, rows(5, 6, 7, 8, 9))
        gate.open(runs=3)

        assert [await sums(each) for each in (first, second)] == [[1.0], [2.0, 3.0, 4.0]]
        assert await sums(asked(service, 5)) == [5.0]

    assert str(refusal.value) == "the queue is full: 3 of 5 rows wait"


@on_a_loop
async def test_who_may_have_gone_makes_way_where_the_queue_is_full(model, gate):
    """Requests whose clients may have gone are refused, the oldest first, as far as room is needed."""
    async with serving(model, queue_rows=5) as service:
        running = asked(service, 1)
        await gate.reached()
        oldest, stays, newer = asked(service, 2, 3), asked(service, 4), asked(service, 5)
        await begun()
        for request in list(service._requests):
            if request.parts[0].arrays[0][0, 0] != 4:
                service.deprioritize(request)
        last = asked(service, 6, 7)
        await begun()
        gate.open(runs=3)

        with raises(Overloaded) as refusal:
            await oldest
        assert [await sums(each) for each in (running, stays, newer, last)] == [
            *([1.0], [4.0], [5.0]),
            [6.0, 7.0],
        ]

    assert str(refusal.value) == "the queue is full, and others wait for answers"
    assert service._deprioritized == {}


@on_a_loop
async def test_a_client_that_floods_overtakes_nobody(model, gate):
    """A request waits for what was there before it; what comes behind it comes later."""
    async with serving(model) as service:
        first = asked(service, 0)
        await gate.reached()
        before = [asked(service, 1, 1, 1) for _ in range(20)]
        other = asked(service, 2)
        behind = [asked(service, 3, 3, 3) for _ in range(100)]
        await begun()
        gate.open(runs=1000)
        await asyncio.gather(first, *before, other, *behind)

    order = [numbers for _, numbers in ran(model)]
    turn = next(i for i, numbers in enumerate(order) if 2.0 in numbers)
    assert turn <= 1 + len(before)
    assert not any(3.0 in numbers for numbers in order[:turn])


@on_a_loop
async def test_a_deadline_in_the_queue_is_kept(model, gate):
    """A request whose time is over while it waits is told so, frees its place and never runs."""
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
    """A request whose time is over on the device is told so; the result is dropped."""
    async with serving(model) as service:
        late = asked(service, 1, timeout_s=0.01)
        await gate.reached()
        with raises(DeadlineExceeded):
            await late
        gate.open(runs=2)

        assert await sums(asked(service, 2)) == [2.0]


@on_a_loop
async def test_the_services_own_limit_holds_beside_the_callers(model, gate):
    """The shorter of the two times counts."""
    async with serving(model, timeout_s=0.01) as service:
        with raises(DeadlineExceeded) as own:
            await ask(service, rows(1))
        with raises(DeadlineExceeded) as generous:
            await ask(service, rows(1), 60.0)
        gate.open()

    assert str(own.value) == str(generous.value) == "no answer within 10 ms"


@on_a_loop
async def test_a_clock_that_jumps_changes_nothing(model, gate, monkeypatch):
    """Deadlines and delays follow a clock that nobody sets."""
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
    """A request that comes too late does not join the queue."""
    async with serving(model) as service:
        with raises(DeadlineExceeded) as refusal:
            await ask(service, rows(1), timeout_s)

    assert str(refusal.value) == "the request's time was over before it was queued"
    assert model.ran == []


@on_a_loop
async def test_what_is_left_of_a_request_that_is_late_does_not_run(model, gate):
    """When a split request's time is over, its rows that still wait leave the queue."""
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
    """A cancelled request leaves the queue before it runs; its neighbours do not notice."""
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
        assert (service._requests, service._scheduler._running, waiting(service)) == ({}, {}, 0)


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
        assert (service._requests, service._scheduler._running) == ({}, {})

    assert len(model.ran) == 1


@on_a_loop
async def test_a_poisonous_request_fails_by_itself(model, gate):
    """Of a batch that upsets the device only the request to blame fails."""
    error = ExecutionError("b4: no 13")
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        poisonous, fine = asked(service, 13), asked(service, 2, 3)
        await begun()
        model.before = failing(error, 13)
        gate.open()

        assert await sums(first) == [1.0]
        with raises(ExecutionError) as failure:
            await poisonous
        assert await sums(fine) == [2.0, 3.0]
        assert await sums(asked(service, 4)) == [4.0]

    assert failure.value is error


@on_a_loop
async def test_a_lack_of_memory_passes(model):
    """Requests for which there is no memory now may be tried again, as often as it takes."""
    failures = RecordedFailures()
    async with serving(model, failures, failures=2) as service:
        model.before = failing(ExecutionError("b1: RESOURCE_EXHAUSTED: out of memory"))
        for _ in range(5):
            with raises(OutOfMemory):
                await ask(service, rows(1))
        model.before = failing(None, 13)

        assert await sums(asked(service, 2)) == [2.0]

    assert service.state is State.READY
    assert failures.reasons == []


@on_a_loop
async def test_a_request_that_failed_in_part_is_not_run_further(model):
    """Once a part of a split request has failed, the rest of it leaves the queue at once."""
    error = ExecutionError("b4: no 1")
    model.before = failing(error, 1)
    async with serving(model) as service:
        with raises(ExecutionError):
            await ask(service, rows(1, 2, 3, 4, 5, 6))

        assert await sums(asked(service, 7)) == [7.0]

    assert ran(model) == [(4, [1.0, 2.0, 3.0, 4.0]), (1, [7.0])]


@on_a_loop
async def test_a_device_that_keeps_failing_is_given_up_once(model, caplog):
    """After so many failing batches in a row the service fails for good, and says so once."""
    failures = RecordedFailures()
    model.broken = ExecutionError("b1: gone")
    async with serving(model, failures, failures=3) as service:
        for _ in range(2):
            with raises(ExecutionError):
                await ask(service, rows(1))
        assert (service.state, failures.reasons) == (State.READY, [])
        with raises(ExecutionError):
            await ask(service, rows(1))
        with raises(NotReady) as refusal:
            await ask(service, rows(1))

    assert service.state is State.FAILED
    assert failures.reasons == ["3 batches failed one after the other"]
    assert str(refusal.value) == "the model is not ready"
    assert "giving up: 3 batches failed one after the other" in caplog.messages


@on_a_loop
async def test_success_in_between_keeps_the_device(model):
    """Failures count only one after the other; a batch of which any task succeeds is none."""
    failures = RecordedFailures()
    model.before = failing(ExecutionError("b1: no 13"), 13)
    async with serving(model, failures, failures=2, queue_delay_s=3600.0) as service:
        for _ in range(3):
            with raises(ExecutionError):
                await ask(service, rows(13, 1, 1, 1))
            assert await sums(asked(service, 1, 2, 3, 4)) == [1.0, 2.0, 3.0, 4.0]
        for _ in range(3):
            poisonous, fine = asked(service, 13), asked(service, 1, 2, 3)
            with raises(ExecutionError):
                await poisonous
            assert await sums(fine) == [1.0, 2.0, 3.0]

    assert failures.reasons == []


STALL_S = 3600.0


@on_a_loop
async def test_a_device_that_hangs_is_given_up(model, gate):
    """When a batch does not come back, whoever waits is answered and the process told to end."""
    failures, stalls = RecordedFailures(), []
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def call_later(delay_s, call, *args):
        if delay_s == STALL_S:
            stalls.append(functools.partial(call, *args))
        return later(delay_s, call, *args)

    loop.call_later = call_later
    async with serving(model, failures, stall_s=STALL_S, max_running=2) as service:
        requests = [asked(service, 1)]
        await gate.reached()
        requests += [asked(service, 2), asked(service, 3)]  # with the device, and in the queue
        await begun()
        stalls[0]()  # its time is over
        answers = await asyncio.gather(*requests, return_exceptions=True)
        await service.drained()

        assert service.state is State.FAILED
        assert failures.reasons == ["the device hangs"]
        gate.open(runs=2)  # it comes back after all: nobody is left to care
        service.close()
        await asyncio.to_thread(service._scheduler.executor._threads[0].join, 30)
        await begun()

    assert [type(answer) for answer in answers] == [NotReady] * 3
    assert [str(answer) for answer in answers] == ["the device has failed"] * 3
    assert service._scheduler._running == {}
    assert len(model.ran) == 2
    assert failures.reasons == ["the device hangs"]


@on_a_loop
async def test_a_batch_that_comes_back_is_not_waited_for_any_longer(model, gate):
    """An answered batch cannot have its device given up later."""
    async with serving(model) as service:
        request = asked(service, 1)
        await gate.reached()
        (stall,) = service._scheduler._running.values()
        gate.open()
        await request

        assert stall.cancelled()


@on_a_loop
async def test_a_device_whose_thread_dies_is_given_up(model):
    """When the device's thread ends, no request waits in vain."""
    failures = RecordedFailures()
    model.before = failing(SystemExit(1))
    async with serving(model, failures) as service:
        requests = [asked(service, n) for n in (1, 2, 3)]
        answers = await asyncio.gather(*requests, return_exceptions=True)
        await service.drained()

    assert [str(answer) for answer in answers] == ["the device has failed"] * 3
    assert all(isinstance(answer, NotReady) for answer in answers)
    assert service.state is State.FAILED
    assert failures.reasons == ["the device thread died"]


@on_a_loop
async def test_nothing_is_answered_before_a_model_is_open(model):
    """A service without a model says that it is loading, then answers."""
    service = Service(Limits(), RecordedFailures())
    with raises(NotReady) as refusal:
        await ask(service, rows(1))
    with raises(NotReady) as loading:
        assert service.model
    before = service.state

    service.open(model)
    answer = await sums(asked(service, 1))
    service.close()

    assert str(refusal.value) == "the model is still being loaded; try again shortly"
    assert str(loading.value) == "the model is still being loaded; try again shortly"
    assert (before, service.state) == (State.LOADING, State.READY)
    assert service.model is model
    assert answer == [1.0]


@on_a_loop
async def test_draining_refuses_the_new_and_answers_what_is_in(model, gate):
    """Requests that fly and requests that wait are answered; only then is the service drained."""
    async with serving(model) as service:
        flying = asked(service, 1)
        await gate.reached()
        queued = [asked(service, n) for n in (2, 3, 4, 5, 6)]
        await begun()
        service.stop()
        drained = asyncio.ensure_future(service.drained())
        with raises(Draining) as refusal:
            await ask(service, rows(7))
        await begun()
        still = drained.done()
        gate.open(runs=3)
        await drained

        assert all(request.done() for request in (flying, *queued))
        assert [await sums(each) for each in (flying, *queued)] == [[float(n)] for n in range(1, 7)]

    assert not still
    assert str(refusal.value) == "the server is stopping"
    assert service.state is State.STOPPING


@on_a_loop
async def test_draining_waits_for_requests_that_wait_for_company(model):
    """A request that only waits for its delay, while nothing runs, is answered too."""
    async with serving(model, queue_delay_s=0.01) as service:
        request = asked(service, 1)
        await begun()
        service.stop()
        await service.drained()
        await begun()

        assert request.done()
        assert await sums(request) == [1.0]


@on_a_loop
async def test_a_service_without_requests_is_drained(model):
    """Where nobody waits there is nothing to wait for, before, between and after requests."""
    loading = Service(Limits(), RecordedFailures())
    await loading.drained()
    async with serving(model) as service:
        await service.drained()
        await asked(service, 1)
        service.stop()
        await service.drained()


@on_a_loop
async def test_a_service_that_was_stopped_while_loading_stays_so(model):
    """A model that is open only after the stop answers nobody."""
    service = Service(Limits(), RecordedFailures())
    service.stop()
    service.open(model)
    with raises(Draining):
        await ask(service, rows(1))
    service.close()

    assert service.state is State.STOPPING


@on_a_loop
async def test_a_service_that_failed_does_not_become_one_that_stops(model):
    """A failed service stays failed when it is drained, so that the process ends as one."""
    model.broken = ExecutionError("b1: gone")
    async with serving(model, failures=1) as service:
        with raises(ExecutionError):
            await ask(service, rows(1))
        service.stop()
        await service.drained()

    assert service.state is State.FAILED


@on_a_loop
async def test_closing_ends_the_devices_thread(model):
    """A closed service leaves no thread."""
    async with serving(model) as service:
        assert await sums(asked(service, 1)) == [1.0]
    thread = service._scheduler.executor._threads[0]

    await asyncio.to_thread(thread.join, 30)

    assert not thread.is_alive()


def test_a_batch_that_outlives_the_loop_is_no_error(model, gate, caplog):
    """When the loop is closed while a batch runs, the device's thread ends all the same."""

    async def leave():
        async with serving(model) as service:
            request = asked(service, 1)
            await gate.reached()
            request.cancel()
            return service._scheduler.executor._threads[0]

    thread = asyncio.run(leave())
    gate.open()
    thread.join(30)

    assert not thread.is_alive()
    assert caplog.messages == []
