"""Several devices behind one queue: which of them runs a batch, and how one that fails is handled."""

import asyncio
import threading

from pytest import fixture, mark, raises

from runtime.errors import ExecutionError
from server.batching.service_state import State
from tests.server.batching.calls import asked, begun, failing, on_a_loop, ran, rows, sums, waiting
from tests.server.fakes import FakeModel, Gate, RecordedFailures, ask, serving

NAMES = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


@fixture
def models():
    """The same model on four devices."""
    return [FakeModel(device_name=name) for name in NAMES]


def on_all(models, **more):
    """Serve with all of them."""
    return serving(models[0], replicas=models[1:], **more)


async def devices_of(*requests):
    """Return which devices ran each request."""
    return [(await request).metadata.devices for request in requests]


@on_a_loop
async def test_each_device_has_a_batch_before_any_waits(models):
    """Successive requests each get a device of their own while one is idle."""
    gates = [Gate() for _ in models]
    for model, gate in zip(models, gates, strict=True):
        model.before = gate
    async with on_all(models) as service:
        requests = []
        for number, gate in enumerate(gates):
            requests.append(asked(service, number))
            await gate.reached()
        requests.append(asked(service, 9))
        await begun()

        assert waiting(service) == 1
        gates[2].open(runs=2)  # The device that is idle first takes the waiting request.
        assert await sums(requests[4]) == [9.0]
        for gate in gates:
            gate.open()
        assert await devices_of(*requests) == [*((name,) for name in NAMES), ("cuda:2",)]

    assert ran(models[2]) == [(1, [2.0]), (1, [9.0])]


@on_a_loop
async def test_requests_that_never_meet_take_turns_on_the_devices(models):
    """Whether a batch runs inline or on a thread, the device that has been idle for longest is chosen first."""
    for inline_s in (0.0, 1.0):
        async with on_all(models, inline_s=inline_s) as service:
            found = []
            for number in range(8):
                request = asked(service, number)
                assert await sums(request) == [number]
                found += await devices_of(request)
                await begun()

        assert found == [(name,) for name in NAMES] * 2


@on_a_loop
async def test_quick_batches_run_at_the_same_time_where_more_rows_wait_than_one_takes(models):
    """Inline, the loop runs one batch at a time; with rows left for another device none is inline."""
    threads = []
    for model in models:
        model.before = lambda _: threads.append(threading.current_thread().name)
    async with on_all(models, inline_s=1.0) as service:
        alone = asked(service, 1)
        assert await sums(alone) == [1.0]
        many = [asked(service, n, n, n, n) for n in range(4)]
        assert [await sums(each) for each in many] == [[n] * 4 for n in range(4)]

    assert threads[0] == threading.current_thread().name
    assert threads[1:4] == ["device"] * 3


@on_a_loop
async def test_a_request_of_several_batches_names_every_device_that_ran_one(models):
    """The metadata of a split request has each device once."""
    async with on_all(models) as service:
        request = asked(service, *range(10))
        assert await sums(request) == list(range(10))

        assert sorted((await request).metadata.devices) == list(NAMES[:3])
        empty = await ask(service, rows())
        assert empty.metadata.devices == ()


@on_a_loop
async def test_under_load_each_request_gets_its_own_rows_from_whichever_device(models):
    """Of 400 requests of one to six rows on four devices each gets its own answer."""
    async with on_all(models) as service:
        wanted = [[number + i / 8 for i in range(1 + number % 6)] for number in range(400)]
        requests = [asked(service, *numbers) for numbers in wanted]

        assert [await sums(request) for request in requests] == wanted
        assert {name for names in await devices_of(*requests) for name in names} == set(NAMES)
        counted = service.metrics.devices
        assert {name: spent.count for name, spent in counted.items()} == {
            model.device_name: len(model.ran) for model in models
        }


@on_a_loop
async def test_a_device_that_keeps_failing_is_given_up_though_others_answer(models):
    """Failures are counted for each device alone: successes of the others do not reset them."""
    failures = RecordedFailures()
    models[1].broken = ExecutionError("b1: an illegal address was read")
    async with on_all(models, process=failures, failures=2) as service:
        outcomes = []
        for number in range(6):
            try:
                outcomes.append(await sums(asked(service, number)))
            except ExecutionError:
                outcomes.append("failed")
            await begun()

        assert outcomes == [[0.0], "failed", [2.0], [3.0], [4.0], "failed"]
        assert service.state is State.FAILED
    assert failures.reasons == ["device cuda:1: 2 batches failed one after the other"]


@mark.parametrize(
    ("inline_s", "reason"),
    [(0.0, "device cuda:0: its thread died"), (1.0, "device cuda:0 died")],
)
def test_a_device_that_dies_is_named(models, inline_s, reason):
    """The server exits with the device's name, on whichever thread it failed."""
    failures = RecordedFailures()
    models[0].before = failing(SystemExit(1))

    @on_a_loop
    async def asking():
        async with on_all(models, process=failures, inline_s=inline_s) as service:
            request = asked(service, 1)
            with raises(Exception, match="the device has failed"):
                await request

    asking()

    assert failures.reasons == [reason]


@on_a_loop
async def test_two_batches_of_a_device_wait_for_none_of_another(models):
    """Where a device may have two batches, it gets a second one once each device has its first."""
    gate = Gate()
    for model in models:
        model.before = gate
    async with on_all(models, max_running=2) as service:
        requests = []
        for number in range(8):
            requests.append(asked(service, number))
            await gate.reached()
        assert waiting(service) == 0
        gate.open(runs=8)
        await asyncio.gather(*requests)

        assert await devices_of(*requests) == [(name,) for name in NAMES] * 2
