"""A pending request and its result. No event loop, no queue, no device."""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import InvalidInput, SignatureMismatch
from runtime.inputs import Checked
from runtime.model import Model
from runtime.records.predictions import Nonfinite
from runtime.tensors import Array
from server.batching.queue import Task

_NO_ERRORS: Mapping[int, InvalidInput] = MappingProxyType({})


class InferenceMetadata(NamedTuple):
    """How a result was computed; HTTP has it as headers.

    Attributes:
      bucket: batch size of the program that ran (the last, if several did).
      padded_rows: rows of padding in its batch.
      queue_s: longest wait of the request's tasks, seconds.
      compute_s: sum of its batches' times on the devices, seconds.
      devices: names of the devices that ran its batches, each once, in the order of its first result;
        empty for a request without rows.
      prepared: how its raw inputs were prepared; None where it had tensors.
    """

    bucket: int
    padded_rows: int
    queue_s: float
    compute_s: float
    devices: tuple[str, ...] = ()
    prepared: "PreparationMetadata | None" = None


class PreparationMetadata(NamedTuple):
    """How the raw inputs of a request were prepared.

    Attributes:
      seconds: that a thread took.
      tokens: of all texts.
      truncated: rows of which a text was cut off.
    """

    seconds: float
    tokens: int
    truncated: int


class BatchOutputs:
    """The outputs of a whole batch, for conversions that are cheaper for all rows together.

    Args:
      outputs: name to the rows of all tasks of the batch, without NaN, and with infinities only in
        outputs for which the bundle declares them.
    """

    __slots__ = ("_converted", "outputs")

    def __init__(self, outputs: dict[str, Array]) -> None:
        self.outputs = outputs
        self._converted: Any = None

    def memoize(self, convert: Callable[[dict[str, Array]], Any]) -> Any:
        """Return the outputs converted by the first caller's `convert`, row for row."""
        if self._converted is None:
            self._converted = convert(self.outputs)
        return self._converted


class ResultSlice(NamedTuple):
    """The result of one part of a request.

    Attributes:
      outputs: by name, row for row.
      batch: the outputs of the batch that has these rows from `start` on; None if there were
        several batches or none.
      start: index of the first row in `batch`.
      rows: number of rows.
    """

    outputs: dict[str, Array]
    batch: BatchOutputs | None
    start: int
    rows: int


class InferenceResult(NamedTuple):
    """The result of a request.

    Attributes:
      parts: one for each part of the request.
      metadata: how they were computed.
      nonfinite: how JSON represents NaN, and infinity where the bundle declares none; None if the
        outputs have neither.
      order: for each part, which rows of the request these are, counted from 0; None where they
        stand in the request's order.
      errors: of raw rows that failed by themselves and are in no part, by their number.
    """

    parts: Sequence[ResultSlice]
    metadata: InferenceMetadata
    nonfinite: Nonfinite | None = None
    order: Sequence[Sequence[int]] | None = None
    errors: Mapping[int, InvalidInput] = _NO_ERRORS

    @property
    def rows(self) -> int:
        """Return the number of rows of all parts."""
        return sum([part.rows for part in self.parts])

    @property
    def outputs(self) -> dict[str, Array]:
        """Return the outputs of all rows, in the request's order.

        Raises:
          SignatureMismatch: an output has the axis of the texts' lengths, and these differ, so that
            its rows make no array.
        """
        if len(self.parts) == 1:
            return self.parts[0].outputs
        return {name: self._joined(name) for name in self.parts[0].outputs}

    def _joined(self, name: str) -> Array:
        pieces = [part.outputs[name] for part in self.parts]
        if len({piece.shape[1:] for piece in pieces}) > 1:
            raise SignatureMismatch(
                f"output {name!r}: expected texts of the same number of tokens, of which it has a row "
                "each, got others; ask for them one by one, or by instances"
            )
        joined = np.concatenate(pieces)
        if self.order is None:
            return joined
        placed = np.empty_like(joined)
        placed[[row for members in self.order for row in members]] = joined
        return placed

    def in_order(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """Return what was made of each part's rows, in the request's order; None for rows with an error.

        Args:
          rows: for each part one value for each of its rows.
        """
        flat = list(itertools.chain.from_iterable(rows))
        if self.order is None:
            return flat
        placed: list[Any] = [None] * (len(flat) + len(self.errors))
        for row, value in zip(itertools.chain.from_iterable(self.order), flat, strict=True):
            placed[row] = value
        return placed


class TaskResult(NamedTuple):
    """The result of one task.

    Attributes:
      outputs: in the signature's order.
      batch: outputs of the whole batch, if they can be read row for row.
      start: index of the task's first row in the batch.
    """

    outputs: tuple[Array, ...]
    batch: BatchOutputs | None
    start: int


@dataclasses.dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that is not answered yet: its tasks, and their results so far.

    Attributes:
      parts: checked inputs; each part's rows have the same sizes. Empty while raw inputs are
        being prepared.
      max_task_rows: rows that a task has at most.
      arrived: when it was submitted, monotonic seconds.
      done: called with the result or the error.
      timer: fires at the caller's deadline, if there is one.
      tasks: each with (checked inputs, request, index) as payload.
      results: for each task its result, None before.
      remaining: number of tasks without a result.
      reserved: rows that are still being prepared.
      counted_bytes: of arrays that raw rows become, in the memory budget.
      order: see `InferenceResult`.
      errors: likewise.
      prepared: see `InferenceMetadata`.
      prefer_thread: see `Service.submit`.
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
    devices: tuple[str, ...] = ()
    as_declared: bool = True
    reserved: int = 0
    counted_bytes: int = 0
    order: Sequence[Sequence[int]] | None = None
    errors: Mapping[int, InvalidInput] = _NO_ERRORS
    prepared: PreparationMetadata | None = None
    prefer_thread: bool = False

    def __post_init__(self) -> None:
        self._make_tasks(self.arrived)

    def begin(self, parts: Sequence[Checked], now: float) -> None:
        """Make tasks of rows that have been prepared; they begin to wait now."""
        self.parts = parts
        self.reserved = 0
        self._make_tasks(now)

    def _make_tasks(self, now: float) -> None:
        self.tasks = []
        for checked in self.parts:
            for start in range(0, checked.rows, self.max_task_rows):
                part = checked.cut(start, min(start + self.max_task_rows, checked.rows))
                payload = (part, self, len(self.tasks))
                self.tasks.append(Task(part.rows, part.sizes, payload, now))
        self.remaining = len(self.tasks)
        self.results = [None] * self.remaining

    def clear(self) -> None:
        """Drop inputs and results, once the request has ended.

        Tasks and requests refer to each other, so a body of megabytes would else stay until the
        garbage collector's next run.
        """
        self.tasks, self.results, self.parts, self.done, self.timer = [], [], (), _ignore, None

    def add_result(
        self,
        index: int,
        result: TaskResult,
        bucket: int,
        padded_rows: int,
        queue_s: float,
        run_s: float,
        device: str,
    ) -> None:
        """Add the result of one task.

        Args:
          index: of the task.
          result: its own.
          bucket: of its batch.
          padded_rows: of its batch.
          queue_s: seconds that the task waited.
          run_s: seconds that its batch was on the device.
          device: its name.
        """
        self.results[index] = result
        self.bucket = bucket
        self.padded_rows = padded_rows
        self.queue_s = max(self.queue_s, queue_s)
        self.compute_s += run_s
        if device not in self.devices:
            self.devices = (*self.devices, device)
        self.remaining -= 1

    def answer(self, model: Model) -> tuple[list[ResultSlice], InferenceMetadata]:
        """Return the parts' results, joined from those of the tasks; none may remain."""
        names = model.output_names
        results = iter(self.results)
        parts = []
        for checked in self.parts:
            count = -(-checked.rows // self.max_task_rows)
            pieces: list[Any] = [next(results) for _ in range(count)]
            if count == 1:
                outputs, batch, start = pieces[0]
                named = dict(zip(names, outputs))  # noqa: B905 (checking takes longer)
                parts.append(ResultSlice(named, batch, start, checked.rows))
            elif count:
                joined = map(np.concatenate, zip(*[piece.outputs for piece in pieces], strict=True))
                named = dict(zip(names, joined, strict=True))
                parts.append(ResultSlice(named, None, 0, checked.rows))
            else:
                parts.append(ResultSlice(model.no_rows(checked.sizes), None, 0, 0))
        return parts, InferenceMetadata(
            self.bucket,
            self.padded_rows,
            self.queue_s,
            self.compute_s,
            self.devices,
            self.prepared,
        )


def _ignore(_: object) -> None:
    """Ignore a result: the request has ended."""
