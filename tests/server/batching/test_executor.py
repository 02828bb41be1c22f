"""The device's thread; its work is done on the test's own thread where that is sufficient."""

import logging
import queue
import threading

import numpy as np
from pytest import fixture, mark

from runtime.errors import ExecutionError
from runtime.inputs import Checked
from server.batching.executor import DeviceExecutor, as_task_error
from server.batching.queue import Batch, Task
from server.errors import OutOfMemory
from tests.server.fakes import ECHO, SUM, FakeModel, RecordedFailures


@fixture
def model():
    """A model without jax, with a bucket of 1 and one of 4."""
    return FakeModel()


@fixture
def outcomes():
    """The results that the device delivered."""
    return []


@fixture
def failures():
    """The failures that the executor reported."""
    return RecordedFailures()


def executor_of(model, deliver, failures=None, signature=SUM, stall_s=60.0):
    """Return an executor whose thread is not started."""
    return DeviceExecutor(
        "cpu:0",
        lambda batch, arrays: model.run(batch.bucket, arrays),
        signature,
        model.canary,
        deliver,
        failures or RecordedFailures(),
        stall_s,
    )


@fixture
def device(model, outcomes, failures):
    """A device whose thread is not started."""
    return executor_of(model, outcomes.append, failures)


def row_task(*arrays, sizes=()):
    """Make a task of one row, as a request does."""
    return Task(1, sizes, (Checked(arrays, 1, sizes),), 0.0)


def batch_of(*numbers, bucket=4):
    """Make a batch with a task of one row for each number."""
    tasks = tuple(row_task(np.full((1, 2), n, np.float32)) for n in numbers)
    return Batch((), bucket, tasks, len(tasks))


def refusing(number, error):
    """Make a model's `before` raise wherever a number is in the batch."""

    def before(rows):
        if number in rows:
            raise error

    return before


def sums(outcome):
    """Return the answers as plain numbers, and errors as they are."""
    return [a if isinstance(a, Exception) else a[0].tolist() for a in outcome.answers]


def test_every_task_of_a_batch_gets_its_rows(device, model):
    """One run answers all tasks, and the batch's result has its times."""
    batch = batch_of(1, 2, 3)

    outcome = device.run_batch(batch)

    assert sums(outcome) == [[2.0], [4.0], [6.0]]
    assert outcome.batch is batch
    assert not outcome.failed
    assert outcome.seconds >= 0.0
    assert [bucket for bucket, _ in model.ran] == [4]


def test_only_the_task_that_upsets_the_device_fails(device, model, caplog):
    """After a device error each task runs once more by itself, and the good ones are answered."""
    error = ExecutionError("program b4: no 13")
    model.before = refusing(13, error)

    outcome = device.run_batch(batch_of(1, 13, 3))

    assert sums(outcome) == [[2.0], error, [6.0]]
    assert not outcome.failed
    assert [rows for _, rows in model.ran[1:]] == [[[n, n]] * 4 for n in (1, 13, 3)]
    assert caplog.messages == ["device cpu:0: a batch of 3 tasks failed"]


def test_a_lone_task_that_fails_is_not_run_again(device, model):
    """A task that ran alone is not run again."""
    error = ExecutionError("program b1: no 13")
    model.before = refusing(13, error)

    outcome = device.run_batch(batch_of(13, bucket=1))

    assert sums(outcome) == [error]
    assert len(model.ran) == 1


def test_requests_that_upset_a_device_that_works_are_not_held_against_it(device, model):
    """Where every task fails but a canary does not, it is the tasks that are at fault."""
    model.before = refusing(13, ExecutionError("program b1: no 13"))

    assert not device.run_batch(batch_of(13)).failed
    assert not device.run_batch(batch_of(13, 13)).failed


def test_a_device_that_fails_every_task_has_failed(device, model):
    """If no task succeeds, alone or not, nor the canary, the device has failed."""
    error = model.broken = ExecutionError("program b4: gone")

    outcome = device.run_batch(batch_of(1, 1))

    assert sums(outcome) == [error, error]
    assert outcome.failed
    assert len(model.ran) == 1 + 2


def test_a_batch_that_lacks_memory_may_be_tried_again_by_its_callers(device, model):
    """Out of memory is distinguished: it is not run again here, and the device has not failed."""
    model.before = refusing(1, ExecutionError("program b4: RESOURCE_EXHAUSTED: 4 GiB at 0x7f"))

    outcome = device.run_batch(batch_of(1, 2))
    after = device.run_batch(batch_of(2, 3))

    assert [type(answer) for answer in outcome.answers] == [OutOfMemory, OutOfMemory]
    assert [str(a) for a in outcome.answers] == ["the device has no memory for this batch now"] * 2
    assert not outcome.failed
    assert sums(after) == [[4.0], [6.0]]
    assert len(model.ran) == 2


def test_memory_that_lacks_in_the_second_try_is_distinguished_too(device, model):
    """A task that runs out of memory when it runs again reports that; its batch-mate keeps its answer."""
    errors = [ExecutionError("program b4: upset"), ExecutionError("b4: RESOURCE_EXHAUSTED")]

    def before(rows):
        if 13 in rows:
            raise errors.pop(0)

    model.before = before

    outcome = device.run_batch(batch_of(13, 2))

    assert isinstance(outcome.answers[0], OutOfMemory)
    assert sums(outcome)[1] == [4.0]


@mark.parametrize("error", [ValueError("a bug"), MemoryError("the host's")], ids=repr)
def test_an_error_that_is_not_the_devices_fails_the_batch_at_once(device, model, error):
    """An error that is no device error is permanent: nothing runs again, and every task gets it."""
    model.before = refusing(1, error)

    outcome = device.run_batch(batch_of(1, 2))

    assert sums(outcome) == [error, error]
    assert not outcome.failed
    assert len(model.ran) == 1


def test_a_batch_that_cannot_be_staged_fails_by_itself(device, model, caplog):
    """An array that fits no program fails its batch at staging; the next one is answered."""
    odd = row_task(np.zeros((1, 3), np.float32))
    fine = batch_of(1).tasks[0]

    outcome = device.run_batch(Batch((), 4, (odd, fine), 2))
    after = device.run_batch(batch_of(1))

    assert all(isinstance(answer, ValueError) for answer in outcome.answers)
    assert model.ran[0][1] == [[1.0, 1.0]] * 4
    assert sums(after) == [[2.0]]
    assert caplog.messages == ["device cpu:0: a batch of 2 tasks failed"]


def test_tasks_of_several_lengths_are_answered_in_their_own(outcomes):
    """A device stages and unstages bucketed axes around every run, a second try included."""
    model = FakeModel(signature=ECHO)
    device = executor_of(model, outcomes.append, signature=ECHO)
    model.before = refusing(13, ExecutionError("b4: no 13"))
    tasks = [
        row_task(np.array([row], np.int32), None, sizes=(len(row),))
        for row in ([1, 2], [13], [3, 4, 5])
    ]

    outcome = device.run_batch(Batch((4,), 4, tuple(tasks), 3))

    first, poisoned, third = outcome.answers
    assert [part.tolist() for part in first] == [[[1, 2]], [3]]
    assert isinstance(poisoned, ExecutionError)
    assert [part.tolist() for part in third] == [[[3, 4, 5]], [12]]


def test_errors_that_are_no_want_of_memory_stay_what_they_are():
    """Only the device's own message for out of memory counts."""
    other, foreign = ExecutionError("INTERNAL: oops"), ValueError("RESOURCE_EXHAUSTED")

    assert as_task_error(other) is other
    assert as_task_error(foreign) is foreign


def test_closing_drains_the_inbox(device, outcomes, failures):
    """Batches that the device has are run, in order, before its thread ends; later ones are not."""
    batches = [batch_of(1), batch_of(2), batch_of(3)]
    for batch in batches[:2]:
        device.submit(batch)
    device.close()
    device.submit(batches[2])

    device._loop()

    assert [outcome.batch for outcome in outcomes] == batches[:2]
    assert failures.reasons == []


def test_a_failing_batch_does_not_end_the_thread(device, model, outcomes, failures):
    """After a batch that fails whole the next one is answered."""
    model.before = refusing(1, ExecutionError("b1: no"))
    for number in (1, 2):
        device.submit(batch_of(number, bucket=1))
    device.close()

    device._loop()

    assert [isinstance(sums(outcome)[0], Exception) for outcome in outcomes] == [True, False]
    assert failures.reasons == []


def test_a_thread_that_dies_says_so(device, model, outcomes, failures, caplog):
    """Whatever ends the thread, except for closing it, is reported once, and logged."""
    model.before = refusing(1, SystemExit(1))
    for number in (1, 2):
        device.submit(batch_of(number))

    device._loop()

    assert failures.reasons == ["device cpu:0: its thread died"]
    assert outcomes == []
    assert caplog.record_tuples == [
        ("server.batching.executor", logging.CRITICAL, "device cpu:0: its thread died"),
    ]


def test_an_outcome_that_cannot_be_delivered_ends_the_thread(model, failures):
    """A failure outside any batch is a bug, and is reported as fatal."""

    def deliver(_):
        raise KeyError("nobody waits for this batch")

    device = executor_of(model, deliver, failures)
    device.submit(batch_of(1))

    device._loop()

    assert failures.reasons == ["device cpu:0: its thread died"]


def test_batches_run_on_a_thread_of_their_own(model, failures):
    """A started device runs and delivers on its own thread, which does not keep the process."""
    delivered = threading.Event()
    threads = []

    def deliver(_):
        threads.append(threading.current_thread())
        delivered.set()

    device = executor_of(model, deliver, failures)
    device.start()
    device.submit(batch_of(1))
    assert delivered.wait(30)
    device.close()
    device._threads[0].join(30)

    assert [thread.name for thread in threads] == ["device"]
    assert threads[0].daemon
    assert not threads[0].is_alive()
    assert failures.reasons == []


def test_a_batch_can_be_run_where_it_is_called(device, outcomes):
    """The result of a batch on the caller's thread is returned, and not delivered."""
    outcome = device.run_inline(batch_of(1, 2))

    assert [answer[0].tolist() for answer in outcome.answers] == [[2.0], [4.0]]
    assert outcomes == []


def test_a_caller_that_hangs_in_the_device_is_noticed(model, outcomes):
    """The device's thread, idle meanwhile, reports when an inline batch takes too long."""
    noticed = threading.Event()
    device = executor_of(model, outcomes.append, RecordedFailures(noticed.set), stall_s=0.01)
    device.start()
    model.before = lambda _: noticed.wait(30)

    device.run_inline(batch_of(1))
    device.close()
    device._threads[0].join(30)

    assert noticed.is_set()


def test_a_batch_in_place_may_have_less_time_than_others(model, outcomes):
    """A program that is known to be quick is reported as hanging long before one that may take its time."""
    noticed = threading.Event()
    device = executor_of(model, outcomes.append, RecordedFailures(noticed.set), stall_s=1e300)
    device.start()
    model.before = lambda _: noticed.wait(30)

    device.run_inline(batch_of(1), stall_s=0.01)
    device.close()
    device._threads[0].join(30)

    assert noticed.is_set()


@mark.parametrize(("ticks", "hangs"), [(1, 0), (4, 0), (5, 1)])
def test_time_without_a_check_does_not_count(model, outcomes, ticks, hangs):
    """A suspended process could not run: a timeout counts waits of its own, not wall-clock time."""
    failures = RecordedFailures()
    device = executor_of(model, outcomes.append, failures, stall_s=4.0)
    device._inbox = Idle(ticks)
    device._inline = batch_of(1), 4.0  # For hours, by the clock.

    device._loop()

    assert failures.hangs == hangs
    assert set(device._inbox.waits) == {1.0}


def test_each_batch_in_place_has_its_own_time(model, outcomes):
    """Many quick batches one after the other are not reported as one that hangs."""
    failures = RecordedFailures()
    device = executor_of(model, outcomes.append, failures, stall_s=4.0)

    def another():
        device._inline = batch_of(1), 4.0

    device._inbox = Idle(20, meanwhile=another)
    device._loop()

    assert failures.hangs == 0


class Idle:
    """An inbox that is empty for so many waits, and then ends.

    Args:
      waits: that many.
      meanwhile: called during each.

    Attributes:
      waits: the seconds of each wait.
    """

    def __init__(self, waits, meanwhile=lambda: None):
        self._left = waits
        self._meanwhile = meanwhile
        self.waits = []

    def get(self, timeout):
        """Wait once, in no time."""
        self._meanwhile()
        self.waits.append(timeout)
        self._left -= 1
        if self._left >= 0:
            raise queue.Empty


def test_a_caller_that_is_back_is_not_watched(model, outcomes):
    """Only a batch that is still running can be too late."""
    failures = RecordedFailures()
    device = executor_of(model, outcomes.append, failures, stall_s=0.002)
    device.start()
    device.run_inline(batch_of(1))
    looked = threading.Event()
    device._inbox = Looked(device._inbox, looks=3, seen=looked.set)
    assert looked.wait(30)
    device.close()
    device._threads[0].join(30)

    assert failures.hangs == 0


def test_a_device_may_be_given_any_time(model, outcomes):
    """A very large timeout does not end the thread that waits."""
    failures = RecordedFailures()
    device = executor_of(model, outcomes.append, failures, stall_s=1e300)
    device.start()
    device.submit(batch_of(1))
    device.close()
    device._threads[0].join(30)

    assert len(outcomes) == 1
    assert failures.reasons == []


class Looked:
    """An inbox that calls a function after it was read so many times.

    Args:
      inbox: the real one.
      looks: that many.
      seen: called then.
    """

    def __init__(self, inbox, looks, seen):
        self._inbox = inbox
        self._looks = looks
        self._seen = seen
        self.put = inbox.put

    def get(self, timeout):
        """Read once."""
        self._looks -= 1
        if not self._looks:
            self._seen()
        return self._inbox.get(timeout=timeout)
