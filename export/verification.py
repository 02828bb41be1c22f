"""The written bundle, tried in a fresh process that cannot import Flax.

What serves later has no Flax either, so a bundle that passes here needs none.
"""

import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from export.errors import ExportError, RowMixing, VerificationError
from export.spec import ExportSpec
from runtime.child_process import python_command
from runtime.guard import signal_name
from runtime.signature import BATCH, TensorSpec

_FORBIDDEN = ("flax", "orbax", "optax", "tensorflow", "export")
_CHILD = (
    f"import sys; sys.modules.update(dict.fromkeys({_FORBIDDEN!r})); "
    "from runtime.guard import mark_expendable; mark_expendable(); "
    "from runtime.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """What the fresh process found.

    Attributes:
      platforms: on which it ran.
      drift: output to the largest difference between buckets.
      mixing: ways in which rows depend on each other.
      programs: bucket to flops, bytes_accessed, temp_bytes, max_error.
    """

    platforms: tuple[str, ...] = ()
    drift: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mixing: tuple[str, ...] = ()
    programs: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


def refuse_unverifiable(spec: ExportSpec) -> None:
    """Raise ExportError if this machine has none of the platforms asked for."""
    if not available(spec) and not spec.unverified:
        here = sorted({d.platform for d in jax.local_devices()})
        raise ExportError(
            f"platforms: expected one that this machine has, to verify the bundle on, got "
            f"{', '.join(spec.platforms)} and a machine with {', '.join(here)}; add cpu, or pass "
            "--unverified"
        )


def available(spec: ExportSpec) -> list[str]:
    """Return the platforms asked for that this machine has."""
    return [p for p in spec.platforms if _has(p)]


def verify(
    bundle: Path, spec: ExportSpec, independent: Sequence[str], progress: Callable[[str], None]
) -> Verified:
    """Verify a staged bundle on every platform that this machine has.

    Args:
      bundle: its directory.
      spec: what was asked for.
      independent: names of the buckets whose traces show that rows do not meet.
      progress: called with a sentence before each slow step.

    Raises:
      RowMixing: rows depend on each other, and the spec does not allow it.
      VerificationError: it does not load, or does not answer as the model does.
    """
    platforms = available(spec)
    if not platforms:
        return Verified()
    reports = [_run(bundle, platform, independent, progress) for platform in platforms]
    for platform, report in zip(platforms, reports, strict=True):
        # Rows first: where they depend on each other, wrong answers follow from it.
        if report["row_mixing"] and not spec.allow_row_mixing:
            raise RowMixing(_mixing_text(report["row_mixing"]))
        if report["mismatches"]:
            raise VerificationError(_mismatch_text(report["mismatches"], platform, spec))
    drift: dict[str, float] = {}
    for report in reports:
        for name, value in report["drift"].items():
            drift[name] = max(drift.get(name, 0.0), float(f"{value:.2g}"))
    mixing = tuple(dict.fromkeys(text for report in reports for text in report["row_mixing"]))
    return Verified(
        platforms=tuple(platforms),
        drift=drift,
        mixing=mixing,
        programs={p["bucket"]: p for p in reports[0]["programs"]},
    )


def _has(platform: str) -> bool:
    try:
        return bool(jax.local_devices(backend=platform))
    except RuntimeError:
        return False


def _run(
    bundle: Path, platform: str, independent: Sequence[str], progress: Callable[[str], None]
) -> dict:  # type: ignore[type-arg]
    command = [
        *python_command(_CHILD),
        "verify",
        str(bundle),
        "--json",
        "--independent",
        *independent,
        "--device",
        platform,
    ]
    with tempfile.TemporaryFile("w+") as out:
        lines = []
        with subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as child:  # noqa: S603
            assert child.stderr is not None  # noqa: S101 (a pipe was asked for)
            try:
                for line in child.stderr:
                    lines.append(line.rstrip())
                    progress(f"verifying: {line.strip()}")
            except BaseException:
                child.kill()  # or leaving this block would wait for it
                raise
        out.seek(0)
        text = out.read()
    if child.returncode < 0:
        raise VerificationError(
            f"the bundle ends the process that loads it: {signal_name(-child.returncode)}"
        )
    try:
        report = json.loads(text)
    except ValueError:
        last = next((line for line in reversed(lines) if line), f"exit status {child.returncode}")
        raise VerificationError(f"the written bundle does not load: {last}") from None
    return report  # type: ignore[no-any-return]


def _mismatch_text(mismatches: Sequence[str], platform: str, spec: ExportSpec) -> str:
    hint = f"; {_padding_hint(spec)}" if spec.axes else ""
    return f"the programs do not answer as the model does, on {platform}: {few(mismatches)}{hint}"


def _padding_hint(spec: ExportSpec) -> str:
    hint = (
        "does padding of a bucketed axis mean something to the model? Give it a mask, or one size"
    )
    for one in spec.inputs:
        if isinstance(one, TensorSpec) and _may_be_lengths(one):
            axis = next(iter(spec.axes))
            return f"{hint}; where {one.name!r} is a length, pass --range {one.name}=1:{axis}"
    return hint


def _may_be_lengths(spec: TensorSpec) -> bool:
    return spec.shape == (BATCH,) and "int" in spec.dtype and not isinstance(spec.maximum, str)


def _mixing_text(mixing: Sequence[str]) -> str:
    return (
        f"a row's answer depends on the rows beside it: {few(mixing)}. Is BatchNorm in training "
        "mode, or does something normalize or route across the batch? --allow-row-mixing exports "
        "it all the same, and a server then runs every request alone"
    )


def few(sentences: Sequence[str]) -> str:
    """List the first three sentences, and say how many more there are."""
    more = f"; and {len(sentences) - 3} more" if len(sentences) > 3 else ""
    return "; ".join(sentences[:3]) + more
