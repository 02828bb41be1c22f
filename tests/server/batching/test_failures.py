"""Batches that fail, and devices that are lost: the errors that callers get, and when the process exits."""

import asyncio
import functools

from pytest import raises

from runtime.errors import ExecutionError
from server.batching.service_state import State
from server.errors import (
    NotReady,
    OutOfMemory,
)
from tests.server.batching.calls import asked, begun, failing, on_a_loop, ran, rows, sums
from tests.server.fakes import FakeModel, RecordedFailures, ask, serving


@on_a_loop
async def test_a_device_that_dies_in_place_is_given_up():
    """An exception that is no error of a batch ends the process, on the loop's own thread as on the device's."""
    model, failures = FakeModel(), RecordedFailures()
    model.before = failing(SystemExit(0))
    async with serving(model, failures, inline_s=1.0) as service:
        with raises(NotReady):
            await ask(service, rows(1))

        assert service.state is State.FAILED

    assert failures.reasons == ["device cpu:0 died"]


@on_a_loop
async def test_a_poisonous_request_fails_by_itself(model, gate):
    """Of a batch that makes the device fail only the request that causes it fails."""
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
    """Requests for which there is no memory now are retryable, any number of times."""
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
    """After so many failed batches in a row the service fails for good, and reports that once."""
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
    assert failures.reasons == ["device cpu:0: 3 batches failed one after the other"]
    assert str(refusal.value) == "the model is not ready"
    assert "giving up: device cpu:0: 3 batches failed one after the other" in caplog.messages


@on_a_loop
async def test_success_in_between_keeps_the_device(model):
    """Only consecutive failures count; a batch of which any task succeeds is none."""
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
    """When a batch does not return, waiting requests are refused and the process is ended."""
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
        requests += [asked(service, 2), asked(service, 3)]  # running, and queued
        await begun()
        stalls[0]()  # The timeout is exceeded.
        answers = await asyncio.gather(*requests, return_exceptions=True)
        await service.drained()

        assert service.state is State.FAILED
        assert failures.reasons == ["device cpu:0 hangs"]
        gate.open(runs=2)  # The batch returns after all: no request is left.
        service.close()
        await asyncio.to_thread(service._scheduler.executors[0]._threads[0].join, 30)
        await begun()

    assert [type(answer) for answer in answers] == [NotReady] * 3
    assert [str(answer) for answer in answers] == ["the device has failed"] * 3
    assert service._scheduler._running == {}
    assert len(model.ran) == 2
    assert failures.reasons == ["device cpu:0 hangs"]


@on_a_loop
async def test_a_batch_that_comes_back_is_not_waited_for_any_longer(model, gate):
    """A batch that was answered in time does not report its device as hanging later."""
    async with serving(model) as service:
        request = asked(service, 1)
        await gate.reached()
        ((_, stall),) = service._scheduler._running.values()
        gate.open()
        await request

        assert stall.cancelled()


@on_a_loop
async def test_a_device_whose_thread_dies_is_given_up(model):
    """When the device's thread ends, no request waits for ever."""
    failures = RecordedFailures()
    model.before = failing(SystemExit(1))
    async with serving(model, failures) as service:
        requests = [asked(service, n) for n in (1, 2, 3)]
        answers = await asyncio.gather(*requests, return_exceptions=True)
        await service.drained()

    assert [str(answer) for answer in answers] == ["the device has failed"] * 3
    assert all(isinstance(answer, NotReady) for answer in answers)
    assert service.state is State.FAILED
    assert failures.reasons == ["device cpu:0: its thread died"]
