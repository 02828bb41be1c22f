"""The batch queue: which tasks run together, when, and in which bucket. No thread, clock, lock or jax.

One caller at a time: the event loop in the server, a test in the tests.
"""

import dataclasses
import functools
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from runtime.buckets import Planner
from server.errors import Overloaded

Sizes = tuple[int, ...]


@dataclasses.dataclass(slots=True, eq=False)
class Task:
    """A request's unit in the queue: rows that are never split.

    Attributes:
      rows: number of rows, from 1 to the largest bucket.
      sizes: the real size of each bucketed axis.
      payload: of the caller; not used by the queue.
      arrived: when it was offered, in seconds of the caller's clock.
    """

    rows: int
    sizes: Sizes
    payload: Any
    arrived: float


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Tasks that run together.

    Attributes:
      sizes: axis sizes of the program.
      bucket: its batch size.
      tasks: in order of arrival.
      rows: of all tasks; the rest of the bucket is padding.
    """

    sizes: Sizes
    bucket: int
    tasks: tuple[Task, ...]
    rows: int


class BatchQueue:
    """A first-in-first-out queue that knows when a batch is due and what is in it.

    A batch is due when its largest bucket is full, or when the oldest task has waited
    `max_delay_s`. While the device is busy the next batch fills for free, so a delay of 0
    batches under load and costs a lone task nothing.

    A batch follows run times: of k queued rows it takes as many as the cheapest plan's
    largest bucket, and it includes tasks of other axis sizes where that is cheaper than
    running them separately. Tasks that share a program run in order of arrival.

    Args:
      planners: axis sizes to the planner of their programs.
      capacity_rows: rows that may wait.
      max_delay_s: maximum time that a task waits for others while the device is free, seconds.
      no_batching: run every task by itself: the model's rows depend on each other.

    Attributes:
      max_rows: rows that a task may have at most.
      rows: number of rows that wait.
      reserved: rows that are prepared elsewhere, and have their place here already.
      no_batching: the same.
      group: returns the smallest axis sizes of a program that fit the given ones.
    """

    def __init__(
        self,
        planners: Mapping[Sizes, Planner],
        *,
        capacity_rows: int,
        max_delay_s: float = 0.0,
        no_batching: bool = False,
    ) -> None:
        self._planners = dict(planners)
        self._waiting: dict[Sizes, dict[Task, None]] = {sizes: {} for sizes in self._planners}
        self._rows = dict.fromkeys(self._planners, 0)
        self._capacity = capacity_rows
        self._max_delay_s = max_delay_s
        self.no_batching = no_batching
        self.max_rows = min(planner.buckets[-1] for planner in self._planners.values())
        self.rows = 0
        self.reserved = 0
        # There are as many sizes as lengths, and each task needs its group.
        self.group = functools.lru_cache(maxsize=4096)(self._group)

    def __len__(self) -> int:
        """Return the number of tasks that wait."""
        return sum(map(len, self._waiting.values()))

    def __contains__(self, task: Task) -> bool:
        """Whether a task waits."""
        return task in self._waiting[self.group(task.sizes)]

    def _group(self, sizes: Sizes) -> Sizes:
        """Return the smallest axis sizes of a program that fit these."""
        fitting = (g for g in self._planners if all(a >= b for a, b in zip(g, sizes, strict=True)))
        return min(fitting)

    def offer(self, tasks: Sequence[Task]) -> None:
        """Add tasks, all or none.

        Raises:
          Overloaded: their rows do not fit in the queue.
        """
        rows = sum([task.rows for task in tasks])
        if rows > self._capacity - self.rows - self.reserved:
            self._refuse()
        self.rows += rows
        for task in tasks:
            group = self.group(task.sizes)
            self._waiting[group][task] = None
            self._rows[group] += task.rows

    def reserve(self, rows: int) -> None:
        """Keep a place for rows that are offered later; a negative number gives it back.

        Raises:
          Overloaded: they do not fit in the queue.
        """
        if rows > self._capacity - self.rows - self.reserved:
            self._refuse()
        self.reserved += rows

    def _refuse(self) -> NoReturn:
        used = self.rows + self.reserved
        raise Overloaded(f"the queue is full: {used} of {self._capacity} rows wait")

    def discard(self, task: Task) -> bool:
        """Remove a task, which is late or cancelled; return whether it was in the queue."""
        if task not in self:
            return False
        self._discard(task)
        return True

    def _discard(self, task: Task) -> Sizes:
        group = self.group(task.sizes)
        del self._waiting[group][task]
        self._rows[group] -= task.rows
        self.rows -= task.rows
        return group

    def due_in(self, now: float) -> float | None:
        """Return the seconds until a batch is due: 0.0 for now, None if nothing waits."""
        return min((wait for wait, _ in self._firsts(now)), default=None)

    def take(self, now: float) -> Batch | None:
        """Remove and return a batch with the oldest task that is due; None if none is due."""
        due = (first for wait, first in self._firsts(now) if wait == 0.0)
        oldest = min(due, key=lambda task: task.arrived, default=None)
        if oldest is None:
            return None
        if self.no_batching:
            return self._remove([oldest])
        sizes, groups = self._merged(self.group(oldest.sizes))
        waiting = [self._waiting[g] for g in groups]
        rows = min(sum(self._rows[g] for g in groups), self._planners[sizes].buckets[-1])
        limit = max(self._planners[sizes].plan(rows)[0], oldest.rows)
        return self._remove(_prefix(_by_arrival(waiting), limit))

    def _firsts(self, now: float) -> Iterator[tuple[float, Task]]:
        """Yield for each group the seconds until its batch is due, and its oldest task."""
        for group, waiting in self._waiting.items():
            if waiting:
                first = next(iter(waiting))
                full = self._rows[group] >= self._planners[group].buckets[-1]
                left = first.arrived + self._max_delay_s - now
                yield (0.0 if full or self.no_batching else max(0.0, left)), first

    def _merged(self, own: Sizes) -> tuple[Sizes, list[Sizes]]:
        """Return the axis sizes that fit all groups of a batch, and these groups."""
        sizes, groups, rows = own, [own], self._rows_of(own)
        others = [g for g, waiting in self._waiting.items() if waiting and g != own]
        for other in sorted(others, key=lambda g: _distance(g, own)):
            both = tuple(map(max, sizes, other))
            more = self._rows_of(other)
            if rows + more > self._planners[both].buckets[-1]:
                continue
            apart = self._planners[sizes].cost(rows) + self._planners[other].cost(more)
            if self._planners[both].cost(rows + more) < apart:
                sizes, rows = both, rows + more
                groups.append(other)
        return sizes, groups

    def _rows_of(self, sizes: Sizes) -> int:
        return min(self._rows[sizes], self._planners[sizes].buckets[-1])

    def _remove(self, tasks: Iterable[Task]) -> Batch:
        taken = tuple(tasks)
        rows = sum([task.rows for task in taken])
        # Not every group that was chosen has tasks in the batch: only those that have count.
        groups = [self._discard(task) for task in taken]
        sizes = tuple([max(axis) for axis in zip(*set(groups), strict=True)])
        return Batch(sizes, self._planners[sizes].single(rows), taken, rows)


def _by_arrival(waiting: list[dict[Task, None]]) -> Iterator[Task]:
    if len(waiting) == 1:
        return iter(waiting[0])
    return heapq.merge(*waiting, key=lambda task: task.arrived)


def _prefix(tasks: Iterable[Task], limit: int) -> Iterator[Task]:
    """Yield the longest prefix of tasks with at most `limit` rows."""
    rows = 0
    for task in tasks:
        rows += task.rows
        if rows > limit:
            return
        yield task


def _distance(a: Sizes, b: Sizes) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))
