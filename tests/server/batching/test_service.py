"""The service on an event loop: requests in, rows out, nothing lost. The device is a fake."""

import asyncio
import gc
import itertools
import random
import weakref

import numpy as np
from pytest import mark, param, raises

from runtime.errors import ExecutionError, SignatureMismatch
from server.batching.pending_request import InferenceMetadata, PendingRequest, TaskResult
from server.batching.service import Service
from server.batching.service_state import State
from server.errors import (
    Draining,
    NotReady,
    Overloaded,
    TooLarge,
)
from server.limits import Limits
from tests.server.batching.calls import asked, begun, on_a_loop, ran, rows, sums
from tests.server.fakes import ECHO, FakeModel, RecordedFailures, ask, serving


@on_a_loop
async def test_a_body_is_freed_with_its_answer(model):
    """A request's memory is freed at once, without the garbage collector: bodies are large."""
    gc.collect()
    gc.disable()
    try:
        async with serving(model, inline_s=1.0) as service:
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
async def test_an_answer_that_cannot_be_delivered_leaves_the_rest_of_its_batch_theirs(
    model, caplog
):
    """An exception in a caller's callback is logged, and the other callers get their results."""

    def broken(_):
        raise RuntimeError("gone")

    async with serving(model, inline_s=1.0) as service:
        service.submit([model.checker.check(rows(1))], broken)

        assert await sums(asked(service, 2)) == [2.0]

    assert "an answer could not be passed on" in caplog.text


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
    assert answer.metadata == InferenceMetadata(0, 0, 0.0, 0.0)
    assert model.ran == []


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
async def test_every_caller_gets_its_own_rows():
    """Of 10,000 requests of random sizes, 200 at a time, each gets exactly its own answer."""
    model = FakeModel(buckets=(1, 4, 16))
    numbers = itertools.count()
    sizes = random.Random(5)
    wrong = []

    async def client(service):
        for _ in range(50):
            own = [float(next(numbers)) for _ in range(sizes.randint(1, 20))]
            if await sums(asked(service, *own)) != own:
                wrong.append(own)

    async with serving(model, queue_rows=200 * 20) as service:
        await asyncio.gather(*(client(service) for _ in range(200)))

    assert wrong == []
    assert len(model.ran) < 10_000  # They shared batches.


@on_a_loop
async def test_an_answer_says_how_it_came_about(model, gate):
    """The metadata name the bucket, its padding, and how long each part took."""
    async with serving(model) as service:
        first = asked(service, 1)
        await gate.reached()
        second, third = asked(service, 2), asked(service, 3, 4)
        await begun()
        gate.open(runs=2)
        first, second, third = [(await each).metadata for each in (first, second, third)]

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

    request.add_result(1, second, 4, padded_rows=1, queue_s=0.5, run_s=1.0, device="cpu:1")
    left = request.remaining
    request.add_result(0, first, 2, padded_rows=0, queue_s=0.25, run_s=2.0, device="cpu:0")
    (part,), evidence = request.answer(model)

    assert (left, request.remaining) == (1, 0)
    assert part.outputs["y"].tolist() == [1.0, 2.0, 3.0]
    assert evidence == InferenceMetadata(2, 0, 0.5, 3.0, ("cpu:1", "cpu:0"))


@on_a_loop
async def test_inputs_that_do_not_fit_never_reach_the_queue(model):
    """A request is checked against the signature before it shares a batch."""
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
    """Rows beyond the queue's capacity are refused whole; those that wait are answered, and free their places."""
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
    """Requests whose clients may have disconnected are refused, the oldest first, as far as room is needed."""
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
    assert service._requests.deprioritized == {}


@on_a_loop
async def test_a_client_that_floods_overtakes_no_other(model, gate):
    """A request waits for those before it; those behind it run later, however many they are."""
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
async def test_nothing_is_answered_before_a_model_is_open(model):
    """A service without a model reports that it is loading, then answers."""
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
    """Running and waiting requests are answered; only then is the service drained."""
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
async def test_draining_waits_for_requests_that_wait_for_a_batch(model):
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
    """A drain without unanswered requests ends at once: while loading, and after requests."""
    loading = Service(Limits(), RecordedFailures())
    await loading.drained()
    async with serving(model) as service:
        await service.drained()
        await asked(service, 1)
        service.stop()
        await service.drained()


@on_a_loop
async def test_a_service_that_was_stopped_while_loading_stays_so(model):
    """A model that is loaded only after the stop answers no request."""
    service = Service(Limits(), RecordedFailures())
    service.stop()
    service.open(model)
    with raises(Draining):
        await ask(service, rows(1))
    service.close()

    assert service.state is State.STOPPING


@on_a_loop
async def test_a_service_that_failed_does_not_become_one_that_stops(model):
    """A failed service is still failed after a drain, so that the process exits as failed."""
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
    thread = service._scheduler.executors[0]._threads[0]

    await asyncio.to_thread(thread.join, 30)

    assert not thread.is_alive()


def test_a_batch_that_outlives_the_loop_is_no_error(model, gate, caplog):
    """When the loop is closed while a batch runs, the device's thread ends all the same."""

    async def leave():
        async with serving(model) as service:
            request = asked(service, 1)
            await gate.reached()
            request.cancel()
            return service._scheduler.executors[0]._threads[0]

    thread = asyncio.run(leave())
    gate.open()
    thread.join(30)

    assert not thread.is_alive()
    assert caplog.messages == []
