"""Goldens on this device: what programs answer to their inputs, compared with what is expected.

Goldens run through every program that can hold them, the longer buckets of a bucketed
axis included, so that they also prove that padding means nothing to the model.
"""

import dataclasses

import numpy as np

from runtime.compare import Comparison, compare, largest_difference
from runtime.entries import Golden
from runtime.errors import IntegrityError
from runtime.inputs import Checked
from runtime.model import Group, Model
from runtime.rows import Each
from runtime.signature import TensorSpec, bucket_name
from runtime.staging import stage, unstage
from runtime.tensors import Array

Rows = tuple[Array, ...]

# By axis sizes and batch: a program's outputs for the rows of `golden_rows`.
Answers = dict[tuple[tuple[int, ...], int], Rows]


@dataclasses.dataclass(frozen=True, slots=True)
class GoldenCheck:
    """How one program answered one golden, at the output that fared worst.

    Attributes:
      bucket: the program, such as `b8` or `b8-seq32`.
      golden: the golden's file.
      output: the output's name.
      comparison: how far it is off, and where.
      atol: accepted absolute difference.
      rtol: accepted difference relative to the expected value.
    """

    bucket: str
    golden: str
    output: str
    comparison: Comparison
    atol: float
    rtol: float

    @property
    def ok(self) -> bool:
        """Return whether the answer is within the tolerance."""
        return self.comparison.ok

    def __str__(self) -> str:
        """Return how far the answer is off, and what was accepted."""
        c = self.comparison
        place = f"output {self.output!r}{list(c.where)}"
        return (
            f"{self.bucket}, {place}: expected {c.expected!r}, got {c.got!r}; max |Δ| "
            f"{c.max_error:.3g}, accepted {self.atol:.3g} + {self.rtol:.3g}·|expected| ({self.golden})"
        )


def check_goldens(
    model: Model, each: Each = map, answers: Answers | None = None
) -> tuple[list[GoldenCheck], dict[str, float]]:
    """Run every golden through every program that can hold it.

    Args:
      model: loaded.
      each: as for `verify.verify`.
      answers: takes what probes of rows would run again.

    Returns:
      The checks, and for each output the largest difference between two buckets'
      answers to the same row.
    """
    checks: list[GoldenCheck] = []
    drift = {spec.name: 0.0 for spec in model.signature.outputs}
    for golden in model.manifest.goldens:
        inputs, expected = read_golden(model, golden)
        found: list[Rows] = []
        for group, batch in _programs_for(model, golden):
            got, first = _answer(model, group, batch, golden, inputs, each)
            found.append(got)
            if answers is not None and golden is _longest(model, group.sizes):
                answers[group.sizes, batch] = first
            checks += compare_with(
                model, bucket_name(model.signature, group.sizes, batch), golden, got, expected
            )
        for i, spec in enumerate(model.signature.outputs):
            changes = (largest_difference(a[i], found[0][i]) for a in found[1:])
            drift[spec.name] = max([drift[spec.name], *changes])
    return checks, drift


def golden_rows(model: Model, sizes: tuple[int, ...], batch: int) -> Rows:
    """Fill a program's inputs with rows of the longest golden that it holds, in a cycle.

    Args:
      model: has the goldens.
      sizes: the program's size of each bucketed axis.
      batch: its bucket.
    """
    golden = _longest(model, sizes)
    inputs, _ = read_golden(model, golden)
    rows = Checked(tuple(_cycle(a, 0, batch) for a in inputs), batch, sizes_of(model, golden))
    return stage(model.signature, (rows,), batch, sizes)


def _longest(model: Model, sizes: tuple[int, ...]) -> Golden:
    """Return the longest golden that programs of these sizes hold."""
    holdable = (g for g in model.manifest.goldens if _fits(model, g, sizes))
    return max(holdable, key=lambda g: (sizes_of(model, g), g.rows))


def read_golden(model: Model, golden: Golden) -> tuple[Rows, Rows]:
    """Read a golden's inputs and expected outputs, in the signature's order.

    Raises:
      IntegrityError: a tensor is missing, its shape is not the signature's, or it expects NaN,
        or an infinity that is not declared.
    """
    tensors = model.bundle.map(golden.file)
    found: list[Rows] = []
    for part, specs in (("input", model.signature.inputs), ("output", model.signature.outputs)):
        arrays = []
        for spec in specs:
            array = tensors.get(f"{part}/{spec.name}")
            shape = spec.concrete(golden.rows, golden.axes)
            if array is None or (array.dtype.name, array.shape) != (spec.dtype, shape):
                got = "none" if array is None else f"{array.dtype.name}{list(array.shape)}"
                raise IntegrityError(
                    f"{golden.file.path}: {part}/{spec.name}: expected {spec.dtype}{list(shape)}, got {got}"
                )
            if part == "output":
                _expect_declared(golden, spec, array)
            arrays.append(array)
        found.append(tuple(arrays))
    return found[0], found[1]


def _expect_declared(golden: Golden, spec: TensorSpec, expected: Array) -> None:
    """Refuse expected answers that no program may have: NaN would equal any other NaN."""
    if "float" not in spec.dtype:
        return
    wide = expected.astype(np.float64)
    bad = np.isnan(wide) if spec.nonfinite else ~np.isfinite(wide)
    if bad.any():
        wanted = "finite values or infinities" if spec.nonfinite else "finite values"
        place = np.argwhere(bad)[0]
        raise IntegrityError(
            f"{golden.file.path}: output/{spec.name}: expected {wanted}, got "
            f"{wide[tuple(place)]} at {place.tolist()}"
        )


def sizes_of(model: Model, golden: Golden) -> tuple[int, ...]:
    """Return a golden's size of each bucketed axis, in the signature's order."""
    return tuple(golden.axes[axis.name] for axis in model.signature.axes)


def _fits(model: Model, golden: Golden, sizes: tuple[int, ...]) -> bool:
    real = sizes_of(model, golden)
    return all(own <= size for own, size in zip(real, sizes, strict=True))


def _programs_for(model: Model, golden: Golden) -> list[tuple[Group, int]]:
    """Return the programs that answer a golden.

    Where rows depend on each other, an answer holds for its own batch alone.
    """
    mixed = bool(model.manifest.row_mixing)
    return [
        (group, batch)
        for group in model.groups.values()
        if _fits(model, golden, group.sizes)
        for batch in group.programs
        if not mixed or batch == golden.rows
    ]


def golden_rows_run(model: Model) -> int:
    """Return how many rows, padding included, the goldens make programs answer."""
    return sum(
        -(-golden.rows // batch) * batch
        for golden in model.manifest.goldens
        for _, batch in _programs_for(model, golden)
    )


def _answer(
    model: Model, group: Group, batch: int, golden: Golden, inputs: Rows, each: Each
) -> tuple[Rows, Rows]:
    """Answer all rows of a golden with one program, filled up by repeating rows in a cycle.

    Returns:
      The answers, cut to the golden's axis sizes, and all outputs of the program for the first batch.
    """
    sizes = sizes_of(model, golden)
    starts = range(0, golden.rows, batch)
    parts = [
        Checked(tuple(_cycle(a, start, batch) for a in inputs), batch, sizes) for start in starts
    ]
    staged = (stage(model.signature, (part,), batch, group.sizes) for part in parts)
    program = group.programs[batch]
    given = list(each(lambda arrays: model.run(program, arrays), staged))
    cut = [
        unstage(model.signature, (part,), outputs)[0]
        for part, outputs in zip(parts, given, strict=True)
    ]
    answers = tuple(np.concatenate(pieces)[: golden.rows] for pieces in zip(*cut, strict=True))
    return answers, given[0]


def _cycle(rows: Array, start: int, count: int) -> Array:
    return np.take(rows, range(start, start + count), axis=0, mode="wrap")


def compare_with(
    model: Model, bucket: str, golden: Golden, got: Rows, expected: Rows
) -> list[GoldenCheck]:
    """Check a program's answer against a golden's: one check for each output."""
    checks = []
    for spec, a, e in zip(model.signature.outputs, got, expected, strict=True):
        tolerance = model.manifest.tolerances[model.platform][spec.name]
        comparison = compare(a, e, tolerance=tolerance)
        checks.append(
            GoldenCheck(
                bucket, golden.file.path, spec.name, comparison, tolerance.atol, tolerance.rtol
            )
        )
    return checks
