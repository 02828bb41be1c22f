"""What is launched next, when and where: decided from a queue and times, without a loop or thread."""

from pytest import approx, fixture, mark

from runtime.buckets import Planner
from server.batching.launch_policy import (
    IDLE_TURN_S,
    MAX_BUSY_WAIT_S,
    LaunchPolicy,
    inline_stall_s,
)
from server.batching.queue import BatchQueue, Task

BUSY_TURN_S = 2 * IDLE_TURN_S


def queue_of(max_delay_s=0.0):
    """Return a queue with buckets of 1 and 4."""
    planner = Planner({1: 1.0, 4: 1.5})
    return BatchQueue({(): planner}, capacity_rows=64, max_delay_s=max_delay_s)


@fixture
def queue():
    """A queue without a delay."""
    return queue_of()


def offer(queue, count=1, now=0.0):
    """Queue tasks of one row each, and return them."""
    tasks = [Task(1, (), None, now) for _ in range(count)]
    queue.offer(tasks)
    return tasks


def on_thread(queue, max_running=1):
    """Return a policy whose programs are all too slow to run inline."""
    return LaunchPolicy(queue, {}, max_running)


def inline(queue):
    """Return a policy whose programs all run inline."""
    return LaunchPolicy(queue, {((), 1): 5.0, ((), 4): 6.0})


def test_an_empty_queue_has_nothing_to_launch(queue):
    """With an empty queue nothing is launched, and no timer is set."""
    assert on_thread(queue).decide(0.0) is None
    assert inline(queue).decide(0.0) is None


def test_what_waits_is_launched_at_once_on_a_free_device(queue):
    """The oldest tasks that fill a bucket leave the queue together."""
    tasks = offer(queue, 5)
    policy = on_thread(queue)

    batch = policy.decide(0.0)

    assert batch.tasks == tuple(tasks[:4])
    assert policy.inline_stall_s(batch) is None
    assert queue.rows == 1


def test_nothing_is_launched_beyond_the_capacity(queue):
    """A device with the maximum of concurrent batches gets no other one."""
    offer(queue)
    policy = on_thread(queue, max_running=2)
    policy.begin()
    policy.begin()

    assert not policy.has_capacity
    assert policy.decide(0.0) is None
    assert queue.rows == 1
    policy.end(0)
    assert policy.has_capacity
    assert policy.decide(0.0).rows == 1


def test_a_batch_that_is_not_due_yet_is_asked_for_again_when_it_is():
    """With a delay the policy returns the remaining seconds."""
    queue = queue_of(max_delay_s=2.0)
    offer(queue, now=10.0)
    policy = on_thread(queue)

    assert policy.decide(10.5) == approx(1.5)
    assert policy.decide(12.0).rows == 1


def test_a_full_bucket_runs_inline_without_a_wait(queue):
    """With a full bucket nothing is gained by another turn of the loop."""
    offer(queue, 4)
    policy = inline(queue)

    batch = policy.decide(0.0)

    assert batch.rows == 4
    assert policy.inline_stall_s(batch) == 6.0


def test_an_inline_batch_waits_for_a_turn_of_the_loop_in_which_nothing_came(queue):
    """While turns take long, more is being read; the first quick one ends the wait."""
    tasks = offer(queue)
    policy = inline(queue)

    assert policy.decide(0.0) == 0.0
    assert policy.decide(BUSY_TURN_S) == 0.0
    tasks += offer(queue)
    assert policy.decide(2 * BUSY_TURN_S) == 0.0
    batch = policy.decide(2 * BUSY_TURN_S + IDLE_TURN_S / 2)

    assert batch.tasks == tuple(tasks)
    assert policy.inline_stall_s(batch) == 6.0


def test_a_bucket_that_fills_ends_the_wait_and_leaves_none_for_the_next(queue):
    """Each batch has a wait of its own, however the one before ended."""
    offer(queue)
    policy = inline(queue)
    assert policy.decide(0.0) == 0.0
    offer(queue, 4)
    assert policy.decide(BUSY_TURN_S).rows == 4

    assert policy.decide(1.0) == 0.0  # Not late, though the last wait began long ago.
    assert policy.decide(1.0 + BUSY_TURN_S) == 0.0
    assert policy.decide(1.0 + BUSY_TURN_S + IDLE_TURN_S / 2).rows == 1


def test_a_loop_that_is_always_busy_delays_an_inline_batch_only_so_long(queue):
    """The wait for a quiet turn is bounded."""
    offer(queue)
    policy = inline(queue)
    now, waits = 0.0, 0
    while policy.decide(now) == 0.0:
        now += MAX_BUSY_WAIT_S / 4
        waits += 1

    assert waits == 5
    assert queue.rows == 0


def test_nothing_waits_for_a_quiet_turn_while_the_device_has_a_batch(queue):
    """Then the batch runs on a thread, and the loop continues reading meanwhile."""
    offer(queue)
    policy = LaunchPolicy(queue, {((), 1): 5.0}, max_running=2)
    policy.begin()

    batch = policy.decide(0.0)

    assert batch.rows == 1
    assert policy.inline_stall_s(batch) is None


def test_a_preference_for_the_thread_lasts_until_the_queue_is_empty(queue):
    """A protocol that needs the loop keeps every batch off it until nothing waits."""
    offer(queue, 5)
    policy = inline(queue)
    policy.prefer_thread = True

    for rows in (4, 1):
        batch = policy.decide(0.0)
        assert (batch.rows, policy.inline_stall_s(batch)) == (rows, None)
    assert policy.decide(0.0) is None
    offer(queue)
    assert policy.decide(0.0) == 0.0
    assert policy.inline_stall_s(policy.decide(0.0)) == 5.0


def test_only_the_programs_that_are_known_to_be_quick_run_inline(queue):
    """Any other program of the model runs on a thread."""
    policy = LaunchPolicy(queue, {((), 1): 5.0})
    offer(queue, 4)

    assert policy.inline_stall_s(policy.decide(0.0)) is None


@mark.parametrize(
    ("measured_s", "stall_s"),
    [(0.0, 5.0), (1e-6, 5.0), (0.0005, 5.0), (0.00075, 7.5), (0.001, 10.0)],
)
def test_the_stall_limit_of_an_inline_batch_follows_from_its_measured_time(measured_s, stall_s):
    """Ten thousand times as long, and five seconds in any case, are more than a slow machine takes."""
    assert inline_stall_s(measured_s) == approx(stall_s)


def test_a_batch_goes_to_the_device_with_the_fewest_and_then_to_the_one_free_first(queue):
    """With two batches for each of two devices, the order in which they end decides between equals."""
    policy = LaunchPolicy(queue, {}, max_running=2, devices=2)

    assert [policy.begin() for _ in range(4)] == [0, 1, 0, 1]
    assert not policy.has_capacity
    policy.end(1)
    policy.end(0)
    assert [policy.begin(), policy.begin()] == [1, 0]
    policy.end(0)
    policy.end(0)
    policy.end(1)
    assert [policy.begin() for _ in range(3)] == [0, 0, 1]
    assert policy.running == 4


def test_with_several_devices_a_batch_is_inline_only_if_it_takes_all_that_waits(queue):
    """What is left can run on another device at the same time, unless the loop is busy computing."""
    offer(queue, 8)
    costs = {((), 1): 5.0, ((), 4): 6.0}
    policy = LaunchPolicy(queue, costs, devices=2)

    first = policy.decide(0.0)
    assert (first.rows, policy.inline_stall_s(first)) == (4, None)
    second = policy.decide(0.0)
    assert (second.rows, policy.inline_stall_s(second)) == (4, 6.0)
