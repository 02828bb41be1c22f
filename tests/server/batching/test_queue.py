"""The queue by itself, without a thread or clock."""

import itertools

import hypothesis.strategies as st
from hypothesis import example, given
from pytest import approx, mark, param, raises

from runtime.buckets import Planner
from server.batching.queue import BatchQueue, Task
from server.errors import Overloaded

# A full bucket costs each row the least, and padding is nearly free.
USUAL = {1: 1.0, 4: 1.25}


def planners(costs=None, *, seq=()):
    """Return the same planner to every program, or one each where the costs differ."""
    costs = costs or USUAL
    return {(size,): Planner(costs) for size in seq} or {(): Planner(costs)}


def queue_of(costs=None, capacity_rows=100, **options):
    """Make a queue of a model without bucketed axes."""
    return BatchQueue(planners(costs), capacity_rows=capacity_rows, **options)


def task(rows=1, at=0.0, seq=None):
    """Make a task; its payload is not looked at."""
    return Task(rows, () if seq is None else (seq,), None, at)


def offered(queue, *tasks):
    """Offer tasks one by one, as requests of their own."""
    for each in tasks:
        queue.offer([each])
    return tasks


def drained(queue, now=1e9):
    """Take batches until none is due."""
    return list(iter(lambda: queue.take(now), None))


def test_an_empty_queue_has_nothing_due():
    """Where nothing waits no batch is due, and none can be taken."""
    queue = queue_of()

    assert queue.due_in(5.0) is None
    assert queue.take(5.0) is None
    assert (len(queue), queue.rows) == (0, 0)


def test_tasks_that_wait_are_one_batch_in_order_of_arrival():
    """Tasks share the smallest bucket that holds them, in the order in which they came."""
    queue = queue_of()
    tasks = offered(queue, task(2, at=1.0), task(1, at=2.0))

    batch = queue.take(2.0)

    assert batch.tasks == tasks
    assert (batch.sizes, batch.bucket, batch.rows) == ((), 4, 3)
    assert (len(queue), queue.rows) == (0, 0)


def test_a_task_is_never_split_nor_overtaken():
    """A task that does not fit waits whole, and smaller ones behind it wait too."""
    queue = queue_of()
    first, large, small = offered(queue, task(2, at=1.0), task(3, at=2.0), task(1, at=3.0))

    assert [batch.tasks for batch in drained(queue)] == [(first,), (large, small)]


def test_a_request_is_taken_in_whole_or_refused_whole():
    """Rows that fit exactly are taken; one row more and none of the request's tasks is."""
    queue = queue_of(capacity_rows=4)
    queue.offer([task(1)])

    with raises(Overloaded) as refusal:
        queue.offer([task(2), task(2)])
    queue.offer([task(2), task(1)])

    assert str(refusal.value) == "the queue is full: 1 of 4 rows wait"
    assert (len(queue), queue.rows) == (3, 4)


def test_what_is_taken_or_discarded_makes_room():
    """Capacity counts the rows that wait now."""
    queue = queue_of(capacity_rows=4)
    gone, _ = offered(queue, task(2), task(2))

    queue.discard(gone)
    offered(queue, task(2))
    queue.take(0.0)
    offered(queue, task(4))

    assert queue.rows == 4


def test_a_discarded_task_is_in_no_batch():
    """A cancelled task is not run; discarding a task that is not in the queue changes nothing."""
    queue = queue_of()
    first, second, third = offered(queue, task(at=1.0), task(at=2.0), task(at=3.0))

    assert queue.discard(second)
    assert not queue.discard(second)
    assert queue.take(3.0).tasks == (first, third)
    assert not queue.discard(first)
    assert queue.rows == 0


def test_without_a_delay_a_lone_task_is_due_at_once():
    """By default a batch does not wait for more rows."""
    queue = queue_of()
    offered(queue, task(at=5.0))

    assert queue.due_in(5.0) == 0.0


def test_the_oldest_task_starts_the_window():
    """The delay is measured from the oldest arrival, whatever arrived later."""
    queue = queue_of(max_delay_s=0.002)
    oldest, _ = offered(queue, task(at=5.0), task(at=5.001))

    assert queue.due_in(5.0) == approx(0.002)
    assert queue.due_in(5.0015) == approx(0.0005)
    assert queue.due_in(7.0) == 0.0
    assert queue.take(5.0015) is None

    queue.discard(oldest)

    assert queue.due_in(5.0015) == approx(0.0015)


def test_a_full_bucket_ends_the_window():
    """Tasks that fill the largest bucket are due at once."""
    queue = queue_of(max_delay_s=60.0)
    offered(queue, task(3, at=5.0))

    before = queue.take(5.0)
    offered(queue, task(1, at=5.0))

    assert before is None
    assert queue.due_in(5.0) == 0.0
    assert queue.take(5.0).rows == 4


def test_a_full_bucket_does_not_end_the_window_of_other_sizes():
    """A batch that is full is taken by itself; the lone older task of other sizes still waits."""
    queue = BatchQueue(planners(seq=(4, 8)), capacity_rows=100, max_delay_s=0.5)
    lone, full = offered(queue, task(at=5.0, seq=8), task(4, at=5.25, seq=4))

    assert queue.take(5.25).tasks == (full,)
    assert queue.take(5.25) is None
    assert queue.due_in(5.25) == 0.25
    assert queue.take(5.5).tasks == (lone,)


@mark.parametrize(
    ("costs", "waiting", "buckets"),
    [
        param({4: 1.0, 8: 1.5, 16: 4.0}, 12, [8, 4], id="two-programs-are-cheaper"),
        param({4: 1.0, 8: 1.5, 16: 2.0}, 12, [16], id="padding-is-cheaper"),
        param({1: 1.0, 4: 5.0}, 3, [1, 1, 1], id="batching-does-not-pay"),
        param({1: 1.0, 4: 1.0}, 9, [4, 4, 1], id="the-larger-costs-nothing-more"),
        param({1: 1.0, 4: 2.0}, 9, [4, 4, 1], id="more-than-the-largest-bucket"),
    ],
)
def test_batches_follow_the_cheapest_plan(costs, waiting, buckets):
    """Waiting rows are run as the run times say: in parts, or padded into one bucket."""
    queue = queue_of(costs)
    offered(queue, *(task() for _ in range(waiting)))

    assert [batch.bucket for batch in drained(queue)] == buckets


def test_a_task_larger_than_the_plan_is_run_whole():
    """Where two small programs were cheaper, a task's rows still stay together."""
    queue = queue_of({1: 1.0, 4: 5.0})
    offered(queue, task(3), task(1))

    assert [(batch.bucket, batch.rows) for batch in drained(queue)] == [(4, 3), (1, 1)]


def test_every_task_runs_alone_where_rows_depend_on_each_other():
    """Tasks of a model that mixes rows never share a batch, nor wait for others."""
    queue = queue_of(max_delay_s=60.0, no_batching=True)
    tasks = offered(queue, task(2), task(1))

    assert queue.due_in(0.0) == 0.0
    assert [batch.tasks for batch in drained(queue, now=0.0)] == [(each,) for each in tasks]


@mark.parametrize(("size", "group"), [(0, 4), (1, 4), (4, 4), (5, 8), (8, 8)], ids=str)
def test_the_smallest_sizes_that_fit_are_used(size, group):
    """A task runs in the shortest program that holds it."""
    queue = BatchQueue(planners(seq=(4, 8)), capacity_rows=100)
    offered(queue, task(seq=size))

    assert queue.take(0.0).sizes == (group,)


def test_each_of_several_axes_has_its_smallest_size():
    """With two bucketed axes, each gets the smallest size that fits, alone and merged."""
    sizes = itertools.product((4, 8), (1, 2))
    queue = BatchQueue({size: Planner(USUAL) for size in sizes}, capacity_rows=100)
    offered(queue, Task(1, (3, 2), None, 0.0), Task(1, (8, 1), None, 1.0))

    assert queue.group((3, 2)) == (4, 2)
    assert queue.group((8, 1)) == (8, 1)
    assert [(b.sizes, b.rows) for b in drained(queue)] == [((8, 2), 2)]


@mark.parametrize(("first", "second"), [(3, 7), (7, 3)])
def test_short_tasks_join_long_ones_where_that_is_cheaper(first, second):
    """Short rows in free rows of the long program cost less than a separate run."""
    queue = BatchQueue(planners(seq=(4, 8)), capacity_rows=100)
    tasks = offered(queue, task(at=1.0, seq=first), task(at=2.0, seq=second))

    (batch,) = drained(queue)

    assert (batch.sizes, batch.bucket, batch.tasks) == ((8,), 4, tasks)


def test_short_tasks_stay_apart_where_the_long_program_costs_more():
    """Where a long row costs more than a short program, the lengths do not share a batch."""
    short, long = Planner({1: 1.0, 4: 1.5}), Planner({1: 2.0, 4: 8.0})
    queue = BatchQueue({(4,): short, (8,): long}, capacity_rows=100)
    offered(queue, *(task(at=at, seq=seq) for at, seq in enumerate((7, 3, 7, 3))))

    assert [(b.sizes, b.rows, b.bucket) for b in drained(queue)] == [
        ((8,), 1, 1),
        ((4,), 2, 4),
        ((8,), 1, 1),
    ]


def test_near_sizes_join_before_far_ones():
    """Where not all sizes fit into one batch, the nearest join."""
    queue = BatchQueue(planners(seq=(4, 8, 16)), capacity_rows=100)
    near = offered(queue, task(2, at=1.0, seq=4), task(2, at=3.0, seq=8))
    (far,) = offered(queue, task(2, at=2.0, seq=16))

    assert [batch.tasks for batch in drained(queue)] == [near, (far,)]


def test_merged_tasks_keep_their_order_of_arrival():
    """Tasks of several sizes in one batch stand in the order in which they came."""
    queue = BatchQueue(planners(seq=(4, 8)), capacity_rows=100)
    tasks = offered(queue, *(task(at=at, seq=seq) for at, seq in enumerate((3, 7, 2, 8))))

    assert queue.take(9.0).tasks == tasks


def test_sizes_do_not_share_a_batch_that_would_overflow():
    """Sizes whose rows do not fit into one bucket together run apart, however cheap the long is."""
    short, long = Planner({1: 3.0, 4: 3.0}), Planner(USUAL)
    queue = BatchQueue({(4,): short, (8,): long}, capacity_rows=100)
    offered(queue, *(task(at=at, seq=seq) for at, seq in enumerate((4, 8, 4, 8, 4))))

    assert [(b.sizes, b.rows) for b in drained(queue)] == [((4,), 3), ((8,), 2)]


def test_a_batch_has_the_sizes_of_the_tasks_in_it():
    """Where the long task that was to join does not fit, the short one runs in its own sizes."""
    # Together 3 rows cost 2.5 in the long programs, apart 1.5 + 1.5; the plan begins with 2 rows.
    short, long = Planner({1: 1.5, 2: 4.0, 4: 4.0}), Planner({1: 1.0, 2: 1.5, 4: 9.0})
    queue = BatchQueue({(4,): short, (8,): long}, capacity_rows=100)
    offered(queue, task(1, at=1.0, seq=4), task(2, at=2.0, seq=8))

    assert [(b.sizes, b.bucket, b.rows) for b in drained(queue)] == [((4,), 1, 1), ((8,), 2, 2)]


costs = st.lists(st.integers(1, 64), min_size=3, max_size=3).map(
    lambda units: Planner({b: n / 8 for b, n in zip((1, 3, 4), units, strict=True)})
)
requests = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 8)), min_size=1, max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), requests),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("discard"), st.integers(0, 50)),
    ),
    max_size=40,
)


class Ledger:
    """Checks a queue's invariants while it is used: what was added, and what was taken."""

    def __init__(self, planners, **options):
        self._planners = planners
        self.queue = BatchQueue(planners, capacity_rows=12, **options)
        self.waiting = []
        self.taken = []
        self._now = 0.0

    def offer(self, request):
        """Offer a request; a refusal is right only where its rows do not fit."""
        self._now += 1.0
        tasks = [task(rows, self._now, seq) for rows, seq in request]
        fits = sum(t.rows for t in [*self.waiting, *tasks]) <= 12
        try:
            self.queue.offer(tasks)
        except Overloaded:
            assert not fits
        else:
            assert fits
            self.waiting += tasks

    def take(self, _=None):
        """Take a batch and check everything that holds of every batch."""
        batch = self.queue.take(self._now)
        if batch is None:
            assert self.queue.due_in(self._now) != 0.0
            return
        assert batch.rows == sum(t.rows for t in batch.tasks) <= batch.bucket
        assert batch.bucket in self._planners[batch.sizes].buckets
        assert batch.sizes == max(self.queue.group(t.sizes) for t in batch.tasks)
        for each in batch.tasks:
            self.waiting.remove(each)
            group = self.queue.group(each.sizes)
            assert not any(t.arrived < each.arrived for t in self._of(group))
        self.taken += batch.tasks

    def discard(self, number):
        """Discard a task that waits, or one that is no longer in the queue."""
        if number < len(self.waiting):
            assert self.queue.discard(self.waiting.pop(number))
        elif self.taken:
            assert not self.queue.discard(self.taken[number % len(self.taken)])

    def wait(self):
        """Advance the clock until everything is due."""
        self._now += 1e6

    def _of(self, group):
        return (t for t in self.waiting if self.queue.group(t.sizes) == group)


@mark.property
@given(
    short=costs,
    long=costs,
    steps=steps,
    delay=st.sampled_from([0.0, 3.0]),
    no_batching=st.booleans(),
)
@example(
    short=Planner({1: 1.0, 3: 1.0, 4: 1.0}),
    long=Planner({1: 1.0, 3: 1.0, 4: 1.0}),
    steps=[("offer", [(1, 4)]), ("offer", [(1, 8)]), ("offer", [(1, 4)]), ("take", None)],
    delay=0.0,
    no_batching=False,
)
def test_nothing_is_lost_duplicated_or_overtaken(short, long, steps, delay, no_batching):
    """After any sequence of offers, takes and discards, every task came out once, in order."""
    ledger = Ledger({(4,): short, (8,): long}, max_delay_s=delay, no_batching=no_batching)

    for step, argument in steps:
        getattr(ledger, step)(argument)
        assert ledger.queue.rows == sum(t.rows for t in ledger.waiting)
        assert len(ledger.queue) == len(ledger.waiting)
    ledger.wait()
    while ledger.waiting:
        ledger.take()

    assert len(ledger.queue) == ledger.queue.rows == 0
    assert ledger.queue.due_in(0.0) is None
    assert len(set(ledger.taken)) == len(ledger.taken)


@mark.property
@given(costs, st.integers(1, 4))
def test_single_rows_cost_what_the_plan_costs(planner, rows):
    """Up to the largest bucket, batches of single rows cost no more than the cheapest plan."""
    queue = BatchQueue({(): planner}, capacity_rows=100)
    offered(queue, *(task() for _ in range(rows)))

    spent = sum(planner.costs[batch.bucket] for batch in drained(queue))

    assert spent == approx(planner.cost(rows))
