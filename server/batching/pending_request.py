"""A request on its way through the service, and what comes of it. No loop, no queue, no device."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.inputs import Checked
from runtime.model import Model
from runtime.records.predictions import Nonfinite
from runtime.tensors import Array
from server.batching.queue import Task


class InferenceMetadata(NamedTuple):
    """How an answer came about.

    Attributes:
      bucket: batch size of the program that answered (the last, if several did).
      padded_rows: rows of padding in its batch.
      queue_s: longest wait of the request's rows.
      compute_s: time on the device's thread of the batches that answered.
    """

    bucket: int
    padded_rows: int
    queue_s: float
    compute_s: float


class BatchOutputs:
    """The outputs of a whole batch, for what is cheaper made of all rows at once.

    Args:
      outputs: rows of all of the batch's tasks, with no NaN in them, and no infinity but in
        outputs that the bundle declares to hold such.
    """

    __slots__ = ("_made", "outputs")

    def __init__(self, outputs: dict[str, Array]) -> None:
        self.outputs = outputs
        self._made: Any = None

    def memoize(self, make: Callable[[dict[str, Array]], Any]) -> Any:
        """Give what the first caller's `make` made of the outputs, row for row."""
        if self._made is None:
            self._made = make(self.outputs)
        return self._made


class ResultSlice(NamedTuple):
    """The answer to rows that were asked together.

    Attributes:
      outputs: by name, row for row.
      batch: the batch in which they are the rows from `start` on; None if there was not one.
      start: see there.
      rows: how many they are.
    """

    outputs: dict[str, Array]
    batch: BatchOutputs | None
    start: int
    rows: int


class InferenceResult(NamedTuple):
    """What came of a request.

    Attributes:
      parts: one for each that was asked.
      evidence: how they came about.
      nonfinite: what JSON is to have for NaN, and for infinity where the bundle declares none;
        None if there is neither.
    """

    parts: Sequence[ResultSlice]
    evidence: InferenceMetadata
    nonfinite: Nonfinite | None = None

    @property
    def rows(self) -> int:
        """Give the rows of all parts."""
        return sum([part.rows for part in self.parts])

    @property
    def outputs(self) -> dict[str, Array]:
        """Give the outputs of a request of one part."""
        (part,) = self.parts
        return part.outputs


class TaskResult(NamedTuple):
    """What a batch gave one task.

    Attributes:
      outputs: in the signature's order.
      batch: of the batch, if what it gave can be read row for row.
      start: the task's first row in it.
    """

    outputs: tuple[Array, ...]
    batch: BatchOutputs | None
    start: int


@dataclasses.dataclass(slots=True, eq=False)
class PendingRequest:
    """A request on its way: its tasks, and what they were given so far.

    Attributes:
      parts: what is asked; each part's rows have the same sizes.
      max_task_rows: rows that a task has at most.
      arrived: the instant it was taken in, monotonic.
      done: called with what comes of it.
      timer: fires at its own deadline, if it has one.
      tasks: each with (checked inputs, request, index) as payload.
      results: for each task what it got.
      remaining: tasks that have got nothing.
    """

    parts: Sequence[Checked]
    max_task_rows: int
    arrived: float
    done: Callable[[InferenceResult | Exception], object]
    timer: asyncio.TimerHandle | None = None
    tasks: list[Task] = dataclasses.field(init=False)
    results: list[TaskResult | None] = dataclasses.field(init=False)
    remaining: int = dataclasses.field(init=False)
    bucket: int = 0
    padded_rows: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    as_declared: bool = True

    def __post_init__(self) -> None:
        self.tasks = []
        for checked in self.parts:
            for start in range(0, checked.rows, self.max_task_rows):
                part = checked.cut(start, min(start + self.max_task_rows, checked.rows))
                payload = (part, self, len(self.tasks))
                self.tasks.append(Task(part.rows, part.sizes, payload, self.arrived))
        self.remaining = len(self.tasks)
        self.results = [None] * self.remaining

    def clear(self) -> None:
        """Let go of what was asked and given, once it has ended.

        Tasks and requests know each other, so nothing else would free a body of megabytes
        before the next look for garbage.
        """
        self.tasks, self.results, self.parts, self.done, self.timer = [], [], (), _nobody, None

    def add_result(
        self,
        index: int,
        given: TaskResult,
        bucket: int,
        padded_rows: int,
        queue_s: float,
        run_s: float,
    ) -> None:
        """Take what one task got.

        Args:
          index: of the task.
          given: its own.
          bucket: of the batch that it was in.
          padded_rows: of that batch.
          queue_s: for which it waited.
          run_s: for which the batch was on the device's thread.
        """
        self.results[index] = given
        self.bucket = bucket
        self.padded_rows = padded_rows
        self.queue_s = max(self.queue_s, queue_s)
        self.compute_s += run_s
        self.remaining -= 1

    def answer(self, model: Model) -> tuple[list[ResultSlice], InferenceMetadata]:
        """Bring what the tasks were given together, part by part; none may be left."""
        names = model.output_names
        given = iter(self.results)
        parts = []
        for checked in self.parts:
            count = -(-checked.rows // self.max_task_rows)
            pieces: list[Any] = [next(given) for _ in range(count)]
            if count == 1:
                outputs, whole, start = pieces[0]
                named = dict(zip(names, outputs))  # noqa: B905 (checking takes longer)
                parts.append(ResultSlice(named, whole, start, checked.rows))
            elif count:
                joined = map(np.concatenate, zip(*[piece.outputs for piece in pieces], strict=True))
                named = dict(zip(names, joined, strict=True))
                parts.append(ResultSlice(named, None, 0, checked.rows))
            else:
                parts.append(ResultSlice(model.no_rows(checked.sizes), None, 0, 0))
        return parts, InferenceMetadata(self.bucket, self.padded_rows, self.queue_s, self.compute_s)


def _nobody(_: object) -> None:
    """Nobody waits for it any more."""
