"""Proof that a bundle is right on this device: goldens, drift, row independence."""

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Sequence

from runtime.errors import GoldenMismatch
from runtime.golden_check import (
    Answers,
    GoldenCheck,
    Rows,
    check_goldens,
    golden_rows,
    golden_rows_run,
)
from runtime.loading import load
from runtime.model import Group, Model
from runtime.preprocessing.raw_goldens import check_raw_goldens
from runtime.rows import KINDS, Each, Mixing, count_runs, find_mixing
from runtime.screening import FEW, count_screens, screen
from runtime.signature import bucket_name

Progress = Callable[[str], None]
# An estimate of less is no help.
_WORTH_TELLING_S = 5.0


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
    row_s = (time.perf_counter() - begin) / max(1, golden_rows_run(model))
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


def check_rows(
    model: Model, group: Group, batch: int, kinds: Sequence[str] = KINDS, each: Each = map
) -> list[Mixing]:
    """Probe one program for rows that depend on each other, with a run for each cause."""
    if batch == 1:
        return []
    rows = golden_rows(model, group.sizes, batch)
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
      answers: its outputs for the rows of `golden_rows`, where that is known.
      each: as for `verify`.
    """
    program = group.programs[batch]
    sign = screen(
        lambda arrays: model.run(program, arrays),
        model.signature.inputs,
        [spec.name for spec in model.signature.outputs],
        golden_rows(model, group.sizes, batch),
        bucket_name(model.signature, group.sizes, batch),
        answers=answers,
        each=each,
    )
    # More runs say what it is that a row depends on.
    return (check_rows(model, group, batch, each=each) or [sign]) if sign else []


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


def _probed_rows(model: Model, batch: int, *, screened: bool) -> int:
    """Return how many rows the probes make a program answer, where none depends on others."""
    count = count_screens if screened else count_runs
    return batch * count(model.signature.inputs, batch)
