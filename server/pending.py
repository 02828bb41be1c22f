"""A request on its way through the service, and what comes of it. No loop but for its future."""

import asyncio
import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from runtime.inputs import Checked
from runtime.model import Model
from runtime.tensors import Array
from server.batching import BatchQueue, Task
from server.device import Outcome

# What JSON, which has no NaN and no infinity, is given for them.
Nonfinite = Literal["null", "error", "string"]


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


class Answer(NamedTuple):
    """What came of a request.

    Attributes:
      outputs: by name, row for row.
      evidence: how they came about.
      nonfinite: what JSON is to have for NaN and infinity; None if there is neither.
    """

    outputs: dict[str, Array]
    evidence: Evidence
    nonfinite: Nonfinite | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Pending:
    """A request on its way: its tasks, what they have given so far, and its future.

    The payload of each of its tasks is (arrays, request, index). Once it has ended, no
    matter how, none of its tasks is left in the queue.
    """

    future: asyncio.Future[None]
    queue: BatchQueue
    tasks: list[Task]
    parts: list[tuple[Array, ...]]
    left: int
    bucket: int = 0
    padded_rows: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    finite: bool = True

    def give(
        self, index: int, outputs: tuple[Array, ...], outcome: Outcome, queue_s: float
    ) -> None:
        """Take one task's outputs; the last one completes the request.

        Args:
          index: of the task.
          outputs: its own.
          outcome: of the batch that it was in.
          queue_s: for which it waited.
        """
        self.parts[index] = outputs
        self.bucket = outcome.batch.bucket
        self.padded_rows = outcome.batch.bucket - outcome.batch.rows
        self.queue_s = max(self.queue_s, queue_s)
        self.compute_s += outcome.seconds
        self.finite = self.finite and outcome.finite
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(None)

    @property
    def evidence(self) -> Evidence:
        """Say how the answer came about."""
        return Evidence(self.bucket, self.padded_rows, self.queue_s, self.compute_s)

    def fail(self, error: Exception) -> None:
        """End with an error, unless it ended already."""
        if not self.future.done():
            self.future.set_exception(error)
        self.withdraw()

    def withdraw(self) -> None:
        """Take what still waits out of the queue."""
        for task in self.tasks:
            self.queue.discard(task)


def joined(model: Model, checked: Checked, parts: list[tuple[Array, ...]]) -> dict[str, Array]:
    """Bring the outputs of a request's tasks together, by name, row for row."""
    names = [spec.name for spec in model.signature.outputs]
    if len(parts) == 1:
        return dict(zip(names, parts[0], strict=True))
    if not parts:
        return model.no_rows(checked.sizes)
    joined = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    return dict(zip(names, joined, strict=True))
