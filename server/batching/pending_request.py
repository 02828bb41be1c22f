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


class Evidence(NamedTuple):
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


class Whole:
    """The outputs of a whole batch, for what is cheaper made of all rows at once.

    Args:
      outputs: rows of all of the batch's tasks, with no NaN in them, and no infinity but in
        outputs that the bundle declares to hold such.
    """

    __slots__ = ("_made", "outputs")

    def __init__(self, outputs: dict[str, Array]) -> None:
        self.outputs = outputs
        self._made: Any = None

    def once(self, make: Callable[[dict[str, Array]], Any]) -> Any:
        """Give what the first caller's `make` made of the outputs, row for row."""
        if self._made is None:
            self._made = make(self.outputs)
        return self._made


class Part(NamedTuple):
    """The answer to rows that were asked together.

    Attributes:
      outputs: by name, row for row.
      whole: the batch in which they are the rows from `start` on; None if there was not one.
      start: see there.
      rows: how many they are.
    """

    outputs: dict[str, Array]
    whole: Whole | None
    start: int
    rows: int


class Answer(NamedTuple):
    """What came of a request.

    Attributes:
      parts: one for each that was asked.
      evidence: how they came about.
      nonfinite: what JSON is to have for NaN, and for infinity where the bundle declares none;
        None if there is neither.
    """

    parts: Sequence[Part]
    evidence: Evidence
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


class Given(NamedTuple):
    """What a batch gave one task.

    Attributes:
      outputs: in the signature's order.
      whole: of the batch, if what it gave can be read row for row.
      start: the task's first row in it.
    """

    outputs: tuple[Array, ...]
    whole: Whole | None
    start: int


@dataclasses.dataclass(slots=True, eq=False)
class Pending:
    """A request on its way: its tasks, and what they were given so far.

    Attributes:
      parts: what is asked; each part's rows have the same sizes.
      most: rows that a task has at most.
      arrived: the instant it was taken in, monotonic.
      done: called with what comes of it.
      timer: fires at its own deadline, if it has one.
      tasks: each with (checked inputs, request, index) as payload.
      given: for each task what it got.
      left: tasks that have got nothing.
    """

    parts: Sequence[Checked]
    most: int
    arrived: float
    done: Callable[[Answer | Exception], object]
    timer: asyncio.TimerHandle | None = None
    tasks: list[Task] = dataclasses.field(init=False)
    given: list[Given | None] = dataclasses.field(init=False)
    left: int = dataclasses.field(init=False)
    bucket: int = 0
    padded_rows: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    as_declared: bool = True

    def __post_init__(self) -> None:
        self.tasks = []
        for checked in self.parts:
            for start in range(0, checked.rows, self.most):
                part = checked.cut(start, min(start + self.most, checked.rows))
                payload = (part, self, len(self.tasks))
                self.tasks.append(Task(part.rows, part.sizes, payload, self.arrived))
        self.left = len(self.tasks)
        self.given = [None] * self.left

    def release(self) -> None:
        """Let go of what was asked and given, once it has ended.

        Tasks and requests know each other, so nothing else would free a body of megabytes
        before the next look for garbage.
        """
        self.tasks, self.given, self.parts, self.done, self.timer = [], [], (), _nobody, None

    def give(
        self, index: int, given: Given, bucket: int, padded_rows: int, queue_s: float, run_s: float
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
        self.given[index] = given
        self.bucket = bucket
        self.padded_rows = padded_rows
        self.queue_s = max(self.queue_s, queue_s)
        self.compute_s += run_s
        self.left -= 1

    def answer(self, model: Model) -> tuple[list[Part], Evidence]:
        """Bring what the tasks were given together, part by part; none may be left."""
        names = model.output_names
        given = iter(self.given)
        parts = []
        for checked in self.parts:
            count = -(-checked.rows // self.most)
            pieces: list[Any] = [next(given) for _ in range(count)]
            if count == 1:
                outputs, whole, start = pieces[0]
                named = dict(zip(names, outputs))  # noqa: B905 (checking takes longer)
                parts.append(Part(named, whole, start, checked.rows))
            elif count:
                joined = map(np.concatenate, zip(*[piece.outputs for piece in pieces], strict=True))
                named = dict(zip(names, joined, strict=True))
                parts.append(Part(named, None, 0, checked.rows))
            else:
                parts.append(Part(model.no_rows(checked.sizes), None, 0, 0))
        return parts, Evidence(self.bucket, self.padded_rows, self.queue_s, self.compute_s)


def _nobody(_: object) -> None:
    """Nobody waits for it any more."""
