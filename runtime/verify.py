"""Proof that a bundle is right on this device: goldens, drift, row independence.

Goldens run through every program that can hold them, the longer buckets of a bucketed
axis included, so that they also prove that padding means nothing to the model.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from runtime.compare import Comparison, compare, largest_difference
from runtime.entries import Golden
from runtime.errors import GoldenMismatch, IntegrityError
from runtime.inputs import Checked
from runtime.loading import load
from runtime.model import Group, Model
from runtime.preprocessing.raw_goldens import check_raw_goldens
from runtime.rows import KINDS, Each, Mixing, count_runs, find_mixing
from runtime.screening import FEW, count_screens, screen
from runtime.signature import TensorSpec, bucket_name
from runtime.staging import stage, unstage
from runtime.tensors import Array

Progress = Callable[[str], None]
Rows = tuple[Array, ...]

# By axis sizes and batch: what a program gave for the rows of `golden_rows`.
Answers = dict[tuple[tuple[int, ...], int], Rows]

# An estimate of less is no help.
_WORTH_TELLING_S = 5.0


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


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What was found on this device.

    Attributes:
      goldens: one check for each golden, program and output.
      drift: output to the largest difference between buckets for one row.
      mixing: ways in which rows depend on each other; empty if they do not.
      preparation: goldens whose raw inputs became other tensors than at export, a line each.
    """

    goldens: tuple[GoldenCheck, ...]
    drift: dict[str, float]
    mixing: tuple[Mixing, ...]
    preparation: tuple[str, ...] = ()

    @property
    def mismatches(self) -> tuple[GoldenCheck, ...]:
        """Return the golden checks that failed."""
        return tuple(check for check in self.goldens if not check.ok)


def verify(
    model: Model,
    *,
    independent: Collection[str] = (),
    progress: Progress | None = None,
    each: Each = map,
) -> Report:
    """Run every golden through every program, and probe every program's rows.

    Args:
      model: loaded; it need not be measured.
      independent: names of programs, such as `b8-seq32`, whose structure shows that rows do not
        meet; few runs look for what rounding makes of these.
      progress: called with a sentence before each slow step, which says how long the rest takes
        where that is long.
      each: runs a program on batches: `map`, or that of a pool of threads.

    Raises:
      IntegrityError: a golden file is not what the manifest says.
      ExecutionError: the device failed.
    """
    progress = progress or (lambda _: None)
    preparation = check_raw_goldens(model.bundle, model.preparer)
    progress("checking goldens")
    begin = time.perf_counter()
    answers: Answers = {}
    checks, drift = check_goldens(model, each, answers)
    row_s = (time.perf_counter() - begin) / max(1, _golden_rows_run(model))
    todo = [(group, batch) for group in model.groups.values() for batch in group.programs]
    names = [bucket_name(model.signature, group.sizes, batch) for group, batch in todo]
    few = [
        batch > FEW and name in independent for name, (_, batch) in zip(names, todo, strict=True)
    ]
    left = [
        _probed_rows(model, batch, screened=screened)
        for screened, (_, batch) in zip(few, todo, strict=True)
    ]
    mixing: list[Mixing] = []
    for i, (group, batch) in enumerate(todo):
        estimate = row_s * sum(left[i:])
        rest = f", about {estimate:.0f} s left" if estimate > _WORTH_TELLING_S else ""
        progress(f"checking rows of {names[i]}{rest}")
        known = answers.pop((group.sizes, batch), None)
        if few[i]:
            mixing += screen_rows(model, group, batch, known, each=each)
        else:
            mixing += check_rows(model, group, batch, each=each)
    return Report(tuple(checks), drift, tuple(mixing), tuple(preparation))


def check_goldens(
    model: Model, each: Each = map, answers: Answers | None = None
) -> tuple[list[GoldenCheck], dict[str, float]]:
    """Run every golden through every program that can hold it.

    Args:
      model: loaded.
      each: as for `verify`.
      answers: is given what probes of rows would run again.

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
            if answers is not None and golden is _longest(model, group):
                answers[group.sizes, batch] = first
            checks += compare_with(
                model, bucket_name(model.signature, group.sizes, batch), golden, got, expected
            )
        for i, spec in enumerate(model.signature.outputs):
            changes = (largest_difference(a[i], found[0][i]) for a in found[1:])
            drift[spec.name] = max([drift[spec.name], *changes])
    return checks, drift


def check_rows(
    model: Model, group: Group, batch: int, kinds: Sequence[str] = KINDS, each: Each = map
) -> list[Mixing]:
    """Probe one program for rows that depend on each other, with a run for each cause."""
    if batch == 1:
        return []
    rows = golden_rows(model, group, batch)
    program = group.programs[batch]
    return find_mixing(
        lambda arrays: model.run(program, arrays),
        model.signature.inputs,
        [spec.name for spec in model.signature.outputs],
        rows,
        bucket_name(model.signature, group.sizes, batch),
        kinds=kinds,
        each=each,
    )


def screen_rows(
    model: Model, group: Group, batch: int, answers: Rows | None = None, each: Each = map
) -> list[Mixing]:
    """Return how rows of one program depend on each other, from few runs where these show nothing.

    Args:
      model: loaded.
      group: holds the program.
      batch: its bucket, more than `screening.FEW` rows.
      answers: what it gave for the rows of `golden_rows`, where that is known.
      each: as for `verify`.
    """
    program = group.programs[batch]
    sign = screen(
        lambda arrays: model.run(program, arrays),
        model.signature.inputs,
        [spec.name for spec in model.signature.outputs],
        golden_rows(model, group, batch),
        bucket_name(model.signature, group.sizes, batch),
        answers=answers,
        each=each,
    )
    # More runs say what it is that a row depends on.
    return (check_rows(model, group, batch, each=each) or [sign]) if sign else []


def golden_rows(model: Model, group: Group, batch: int) -> Rows:
    """Fill a program's inputs with rows of the longest golden that it holds, in a cycle."""
    golden = _longest(model, group)
    inputs, _ = read_golden(model, golden)
    rows = Checked(tuple(_cycle(a, 0, batch) for a in inputs), batch, sizes_of(model, golden))
    return stage(model.signature, (rows,), batch, group.sizes)


def _longest(model: Model, group: Group) -> Golden:
    """Return the longest golden that a group's programs hold."""
    holdable = (g for g in model.manifest.goldens if _fits(model, g, group))
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
    """Refuse expected answers that no program is to give: NaN would equal any other NaN."""
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


def assert_bundle_matches_goldens(
    bundle: str | os.PathLike[str], device: object | None = None
) -> None:
    """Assert, in a pytest test, that a bundle reproduces its goldens on this device.

    Args:
      bundle: the bundle's directory.
      device: as for `runtime.load`.

    Raises:
      GoldenMismatch: it does not; the message lists every program that fails.
      BundleError: it cannot be loaded here.
    """
    model = load(bundle, device)
    checks, _ = check_goldens(model)
    failed = check_raw_goldens(model.bundle, model.preparer)
    failed += [str(check) for check in checks if not check.ok]
    if failed:
        raise GoldenMismatch(
            "\n".join([f"{len(failed)} golden checks failed on {model.platform}:", *failed])
        )


def sizes_of(model: Model, golden: Golden) -> tuple[int, ...]:
    """Return a golden's size of each bucketed axis, in the signature's order."""
    return tuple(golden.axes[axis.name] for axis in model.signature.axes)


def _fits(model: Model, golden: Golden, group: Group) -> bool:
    sizes = sizes_of(model, golden)
    return all(real <= size for real, size in zip(sizes, group.sizes, strict=True))


def _programs_for(model: Model, golden: Golden) -> list[tuple[Group, int]]:
    """Return the programs that answer a golden.

    Where rows depend on each other, an answer holds for its own batch alone.
    """
    mixed = bool(model.manifest.row_mixing)
    return [
        (group, batch)
        for group in model.groups.values()
        if _fits(model, golden, group)
        for batch in group.programs
        if not mixed or batch == golden.rows
    ]


def _golden_rows_run(model: Model) -> int:
    """Return how many rows, padding included, the goldens make programs answer."""
    return sum(
        -(-golden.rows // batch) * batch
        for golden in model.manifest.goldens
        for _, batch in _programs_for(model, golden)
    )


def _probed_rows(model: Model, batch: int, *, screened: bool) -> int:
    """Return how many rows the probes make a program answer, where none depends on others."""
    count = count_screens if screened else count_runs
    return batch * count(model.signature.inputs, batch)


def _answer(
    model: Model, group: Group, batch: int, golden: Golden, inputs: Rows, each: Each
) -> tuple[Rows, Rows]:
    """Answer all rows of a golden with one program, filled up by repeating rows in a cycle.

    Returns:
      The answers, cut to the golden's axis sizes, and all that the program gave for the first batch.
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
