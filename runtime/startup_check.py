"""The startup check: warm-up, goldens and row independence in one pass over the programs.

Each program runs once on golden rows, with copies of one of them at the first, a middle and the
last position: it has to reproduce the goldens, and the copies have to get the same bits. One small
program of each group runs once more with other rows beside the copy, drawn at random: a batch
statistic moves all copies alike, which copies alone would not show.

Every program answers at least one golden row, and every golden row is answered by at least one program of
its group. That is enough where all golden rows went through all programs on this platform before,
with all kinds of other rows beside them: `verify`, at export or at a first start.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime.compare import largest_difference
from runtime.entries import Golden
from runtime.errors import IntegrityError
from runtime.golden_check import GoldenCheck, compare_with, read_golden, sizes_of
from runtime.inputs import Checked
from runtime.model import Group, Model
from runtime.preprocessing.raw_goldens import check_raw_goldens
from runtime.rows import Mixing, draw, same_bits
from runtime.signature import bucket_name
from runtime.staging import stage, unstage
from runtime.tensors import Array

Progress = Callable[[str], None]

# Batch size of the programs that run with random rows: small, with several positions.
_SMALL_BATCH = 4


@dataclasses.dataclass(frozen=True, slots=True)
class GoldenRow:
    """One row of a golden.

    Attributes:
      golden: whose it is.
      index: its place there.
      inputs: of one row.
      expected: the reference's outputs, of one row.
    """

    golden: Golden
    index: int
    inputs: Checked
    expected: tuple[Array, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class StartupReport:
    """What the startup check found.

    Attributes:
      goldens: one check for each run, golden row and output.
      mixing: ways in which rows were seen to depend on each other.
      runs: of programs.
      groups: one line for each group of programs: what was checked.
      preparation: goldens whose raw inputs became other tensors than at export, a line each.
    """

    goldens: tuple[GoldenCheck, ...]
    mixing: tuple[Mixing, ...]
    runs: int
    groups: tuple[str, ...]
    preparation: tuple[str, ...] = ()

    @property
    def mismatches(self) -> tuple[GoldenCheck, ...]:
        """Return the checks that failed."""
        return tuple(check for check in self.goldens if not check.ok)


def plan_runs(batches: Sequence[int], rows: int, *, must: int) -> list[tuple[int, list[int]]]:
    """Decide which golden rows each program of a group runs on. Pure.

    Args:
      batches: of the programs, increasing.
      rows: how many golden rows there are; the first `must` of them have to be answered.
      must: see `rows`.

    Returns:
      For each run the batch, and for each position of it a golden row. Runs of more than one row
      have copies of their first row at the first, a middle and the last position.
    """
    upcoming = itertools.cycle(range(rows))
    answered: set[int] = set()
    runs = []
    for batch in batches:
        probe = next(upcoming)
        copies = copy_positions(batch)
        placed = [probe if i in copies else next(upcoming) for i in range(batch)]
        answered.update(placed)
        runs.append((batch, placed))
    left = [row for row in range(must) if row not in answered]
    largest = batches[-1]
    for start in range(0, len(left), largest):
        part = left[start : start + largest]
        batch = min(b for b in batches if b >= len(part))
        runs.append((batch, [part[min(i, len(part) - 1)] for i in range(batch)]))
    return runs


def copy_positions(batch: int) -> tuple[int, ...]:
    """Return where copies of a row stand in a batch: first, middle and last."""
    return tuple(sorted({0, batch // 2, batch - 1}))


def check_startup(model: Model, *, progress: Progress | None = None) -> StartupReport:
    """Run the startup check.

    Args:
      model: loaded; it need not be measured.
      progress: called with one line for each group of programs.

    Raises:
      IntegrityError: a golden file is not what the manifest says.
      ExecutionError: the device failed.
    """
    progress = progress or (lambda _: None)
    checks: list[GoldenCheck] = []
    mixing: list[Mixing] = []
    lines: list[str] = []
    runs = 0
    preparation = check_raw_goldens(model.bundle, model.preparer)
    goldens = [(golden, *read_golden(model, golden)) for golden in model.manifest.goldens]
    for group in model.groups.values():
        if model.manifest.row_mixing:
            found = _check_whole_goldens(model, group, goldens)
            line = f"{len(found)} runs of goldens as they are; rows depend on each other"
            checks += [check for one in found for check in one]
            ran = len(found)
        else:
            rows, must = _rows_for(model, group, goldens)
            if not rows:
                raise IntegrityError(
                    f"goldens: expected one that {bucket_name(model.signature, group.sizes, 1)} can "
                    "answer, got none"
                )
            group_checks, group_mixing, ran, small = _check_group(model, group, rows, must)
            checks += group_checks
            mixing += group_mixing
            line = (
                f"{len(group.programs)} programs, {must or 1} golden rows, rows beside each other in "
                f"{small}, {ran} runs"
            )
        runs += ran
        at = ", ".join(
            f"{axis.name} {size}"
            for axis, size in zip(model.signature.axes, group.sizes, strict=True)
        )
        lines.append(f"{at}: {line}" if at else line)
        progress(f"checked {lines[-1]}")
    return StartupReport(tuple(checks), tuple(mixing), runs, tuple(lines), tuple(preparation))


def _rows_for(
    model: Model,
    group: Group,
    goldens: Sequence[tuple[Golden, tuple[Array, ...], tuple[Array, ...]]],
) -> tuple[list[GoldenRow], int]:
    """Return the golden rows that a group can answer, its own first, and how many are its own."""
    own: list[GoldenRow] = []
    others: list[GoldenRow] = []
    for golden, inputs, expected in goldens:
        sizes = sizes_of(model, golden)
        if any(real > size for real, size in zip(sizes, group.sizes, strict=True)):
            continue
        into = own if model.group(sizes) is group else others
        into += [
            GoldenRow(
                golden,
                i,
                Checked(tuple(a[i : i + 1] for a in inputs), 1, sizes),
                tuple(e[i : i + 1] for e in expected),
            )
            for i in range(golden.rows)
        ]
    return own + others, len(own)


def _check_group(
    model: Model, group: Group, rows: Sequence[GoldenRow], must: int
) -> tuple[list[GoldenCheck], list[Mixing], int, str]:
    checks: list[GoldenCheck] = []
    mixing: list[Mixing] = []
    batches = sorted(group.programs)
    small = min((b for b in batches if b >= _SMALL_BATCH), default=batches[-1])
    plan = plan_runs(batches, len(rows), must=must)
    ran = 0
    for i, (batch, placed) in enumerate(plan):
        bucket = bucket_name(model.signature, group.sizes, batch)
        parts = [rows[r].inputs for r in placed]
        answers = _run(model, group, batch, parts)
        ran += 1
        first: dict[int, tuple[Array, ...]] = {}
        for position, (r, answer) in enumerate(zip(placed, answers, strict=True)):
            if r in first:
                mixing += _differences(model, bucket, position, "position", first[r], answer)
                continue
            first[r] = answer
            checks += compare_with(model, bucket, rows[r].golden, answer, rows[r].expected)
        if batch == small and batch > 1 and i < len(batches):
            middle = batch // 2
            beside = _with_random_rows(model, group, batch, parts, middle)
            got = unstage(model.signature, parts, beside)[middle]
            ran += 1
            mixing += _differences(model, bucket, middle, "random", answers[middle], got)
    return checks, mixing, ran, bucket_name(model.signature, group.sizes, small)


def _run(
    model: Model, group: Group, batch: int, parts: Sequence[Checked]
) -> list[tuple[Array, ...]]:
    inputs = stage(model.signature, parts, batch, group.sizes)
    return unstage(model.signature, parts, model.run(group.programs[batch], inputs))


def _with_random_rows(
    model: Model, group: Group, batch: int, parts: Sequence[Checked], kept: int
) -> tuple[Array, ...]:
    """Run a batch again, with all rows but one replaced by random ones."""
    rng = np.random.default_rng(11)
    named = dict(zip((axis.name for axis in model.signature.axes), group.sizes, strict=True))
    inputs = []
    for spec, staged in zip(
        model.signature.inputs, stage(model.signature, parts, batch, group.sizes), strict=True
    ):
        others = draw(spec, staged.shape, named, rng)
        others[kept] = staged[kept]
        inputs.append(others)
    return model.run(group.programs[batch], tuple(inputs))


def _differences(
    model: Model,
    bucket: str,
    position: int,
    cause: str,
    before: tuple[Array, ...],
    after: tuple[Array, ...],
) -> Iterator[Mixing]:
    for spec, a, b in zip(model.signature.outputs, before, after, strict=True):
        if not same_bits(a, b):
            yield Mixing(bucket, spec.name, position, cause, largest_difference(a, b))


def _check_whole_goldens(
    model: Model,
    group: Group,
    goldens: Sequence[tuple[Golden, tuple[Array, ...], tuple[Array, ...]]],
) -> list[list[GoldenCheck]]:
    """Run goldens as batches of their own: where rows mix, an answer holds for its batch alone."""
    found = []
    for golden, inputs, expected in goldens:
        sizes = sizes_of(model, golden)
        fits = all(real <= size for real, size in zip(sizes, group.sizes, strict=True))
        if fits and golden.rows in group.programs:
            part = Checked(inputs, golden.rows, sizes)
            answers = _run(model, group, golden.rows, [part])[0]
            bucket = bucket_name(model.signature, group.sizes, golden.rows)
            found.append(compare_with(model, bucket, golden, answers, expected))
    return found
