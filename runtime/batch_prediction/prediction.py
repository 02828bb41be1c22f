"""Windows through the programs: rows are checked, planned, run and put back in order."""

import collections
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.batch_prediction.blocks import Position, Window
from runtime.batch_prediction.fields import Fields, ReadBlock, read_block
from runtime.batch_prediction.plan import Run, plan
from runtime.batch_prediction.rows import Rows
from runtime.inputs import Checked
from runtime.model import Model
from runtime.program import Program
from runtime.staging import stage, unstage
from runtime.tensors import Array, numpy_dtype

# Runs that were dispatched beside the one that is waited for, so that the device goes on meanwhile.
_AHEAD = 4


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedRows:
    """Rows that fit, and the runs that answer them.

    Attributes:
      good: int[n], the places of these rows among all, in order.
      parts: checked rows.
      part_of: int[n], the part of each of these rows.
      place_in: int[n], its place there.
      runs: cover these rows; their members are places among these rows.
    """

    good: Array
    parts: tuple[Checked, ...]
    part_of: Array
    place_in: Array
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ReadyWindow:
    """A window whose rows are checked and planned.

    Attributes:
      blocks: in order.
      first: the number of its first row.
      end: where the next window begins.
      done: see `Window`.
      rows: of the window that fit.
    """

    blocks: tuple[ReadBlock, ...]
    first: int
    end: Position
    done: float | None
    rows: PlannedRows

    @property
    def good(self) -> Array:
        """Return int[n], the places of the rows that fit in the window, in order."""
        return self.rows.good


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """The outputs of some rows, which have the same sizes.

    Attributes:
      members: int[n], places among the rows of the window that fit, or among all rows.
      outputs: in the signature's order, each [n, ...].
    """

    members: Array
    outputs: tuple[Array, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AnsweredWindow:
    """A window with the outputs of its rows.

    Attributes:
      window: that was answered.
      answers: of all rows that fit; one entry where outputs have no bucketed axis.
    """

    window: ReadyWindow
    answers: tuple[Answers, ...]


class StoppedError(Exception):
    """Runs were stopped; their outputs are wanted no more."""


class _Started(NamedTuple):
    """A run that was dispatched, with what its outputs are divided by."""

    run: Run
    parts: Sequence[Checked]
    program: Program
    outputs: Sequence[Any]


class Predictor:
    """Answers windows with the programs of a model.

    Args:
      model: loaded and checked.
      fields: of rows that are no inputs.
      alone: whether each row runs by itself, since rows depend on each other.
    """

    def __init__(self, model: Model, fields: Fields, *, alone: bool = False) -> None:
        self._model = model
        self._fields = fields
        self._alone = alone
        self._answering = threading.Lock()
        self._stopped = False
        self._buckets = {sizes: sorted(group.programs) for sizes, group in model.groups.items()}
        axes = {axis.name for axis in model.signature.axes}
        self._ragged = any(axes.intersection(map(str, s.shape)) for s in model.signature.outputs)

    def prepare(self, window: Window) -> ReadyWindow:
        """Check and plan the rows of a window. May be called from several threads at once."""
        blocks = tuple(read_block(block, self._model, self._fields) for block in window.blocks)
        parts = tuple(part for block in blocks for part in block.rows.parts)
        starts = np.cumsum([0, *(block.count for block in blocks)])
        members = [
            own + start
            for block, start in zip(blocks, starts, strict=False)
            for own in block.rows.members
        ]
        rows = self._plan(parts, members)
        return ReadyWindow(blocks, window.first, window.end, window.done, rows)

    def answer(self, window: ReadyWindow) -> AnsweredWindow:
        """Run the programs of a window.

        Raises:
          ExecutionError: the device failed.
          StoppedError: another thread called `stop`.
        """
        with self._answering:
            return AnsweredWindow(window, self._answer(window.rows))

    def answer_rows(self, rows: Rows) -> list[Answers]:
        """Answer rows that are in no window. May be called from several threads at once.

        Args:
          rows: checked.

        Returns:
          Answers of all rows that fit, whose members are places among all rows.

        Raises:
          ExecutionError: the device failed.
        """
        planned = self._plan(rows.parts, rows.members)
        answers = self._answer(planned)
        return [Answers(planned.good[own.members], own.outputs) for own in answers]

    def stop(self) -> None:
        """Run no further program, and wait for those that run.

        An interpreter that ends while a thread is inside of a device's native code ends by SIGABRT.
        """
        self._stopped = True
        with self._answering:
            pass

    def _plan(self, parts: tuple[Checked, ...], members: Sequence[Array]) -> PlannedRows:
        counts = [part.rows for part in parts]
        places = np.concatenate([*members, np.empty(0, np.intp)]).astype(np.intp)
        order = np.argsort(places, kind="stable")
        part_of = np.repeat(np.arange(len(parts)), counts)[order]
        place_in = np.concatenate([*map(np.arange, counts), np.empty(0, np.intp)]).astype(np.intp)
        sizes = [self._model.group(part.sizes).sizes for part in parts]
        runs = plan(sizes, part_of, self._buckets, alone=self._alone)
        return PlannedRows(places[order], parts, part_of, place_in[order], tuple(runs))

    def _answer(self, planned: PlannedRows) -> tuple[Answers, ...]:
        found = self._run(planned)
        if self._ragged or not found:
            return tuple(found)
        rows = len(planned.good)
        signature = self._model.signature
        whole = tuple(
            np.empty(spec.concrete(rows, {}), numpy_dtype(spec.dtype)) for spec in signature.outputs
        )
        for answers in found:
            for out, piece in zip(whole, answers.outputs, strict=True):
                out[answers.members] = piece
        return (Answers(np.arange(rows), whole),)

    def _run(self, planned: PlannedRows) -> list[Answers]:
        found: list[Answers] = []
        started: collections.deque[_Started] = collections.deque()
        for run in planned.runs:
            if self._stopped:
                break
            started.append(self._start(planned, run))
            if len(started) > _AHEAD:
                found += self._finish(started.popleft())
        while started:
            found += self._finish(started.popleft())
        if self._stopped:
            raise StoppedError
        return found

    def _start(self, planned: PlannedRows, run: Run) -> _Started:
        pieces = _pieces(planned, run.members)
        parts = [planned.parts[part].cut(start, end) for part, start, end in pieces]
        program = self._model.groups[run.sizes].programs[run.batch]
        inputs = stage(self._model.signature, parts, run.batch, run.sizes)
        return _Started(run, parts, program, program.dispatch(self._model.params, inputs))

    def _finish(self, started: _Started) -> list[Answers]:
        outputs = started.program.fetch(started.outputs)
        begin = 0
        found = []
        parts = started.parts
        for part, own in zip(parts, unstage(self._model.signature, parts, outputs), strict=True):
            found.append(Answers(started.run.members[begin : begin + part.rows], own))
            begin += part.rows
        return found


def _pieces(planned: PlannedRows, members: Array) -> Sequence[tuple[int, int, int]]:
    """Return consecutive rows of parts: the part, and from where to where."""
    part, place = planned.part_of[members], planned.place_in[members]
    cuts = np.flatnonzero((np.diff(part) != 0) | (np.diff(place) != 1)) + 1
    starts = [0, *cuts.tolist()]
    ends = [*cuts.tolist(), len(members)]
    return [
        (int(part[start]), int(place[start]), int(place[end - 1]) + 1)
        for start, end in zip(starts, ends, strict=True)
    ]
