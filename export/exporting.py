"""The way of an export, from a model to a bundle in place.

1. `plan.prepare`          everything that is decided before a program is lowered:
   `models.registry.adapt` the model becomes one pure function with named params
   `tracing.trace_all`     it is traced once per bucket; large constants become params
   `reference`             the un-exported model answers goldens, op by op
   `row_analysis`          which traces show that rows are independent
2. `lowering.lower`        each trace becomes a serialized program
3. `writing.write`         everything goes to a staging directory
4. `verification.verify`   a fresh process without Flax loads it, runs it, compares
5. `for_tensorflow.make`   where a SavedModel is wanted it is made, and tried likewise
6. `BundleWriter.commit`   one rename puts each in place, or none of the two
"""

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export import card_check, for_tensorflow, symbolic, verification
from export.errors import ExportError
from export.fields import read_field
from export.input_options import OPTIONS, with_options
from export.jax_settings import Honoured, honouring, without_mesh
from export.lowering import Lowered, lower
from export.models.registry import with_own_inputs
from export.outputs import Key
from export.plan import Plan, prepare
from export.progress import shown, silent, stderr_console
from export.report import ProgramReport, Progress, Report
from export.spec import ExportSpec
from export.tracing import precision
from export.writing import tolerances, write
from runtime.accelerators import Card
from runtime.card_report import keep_report
from runtime.description import describe_format, describe_output
from runtime.errors import nearest
from runtime.localpaths import why_not_written
from runtime.manifest import Manifest
from runtime.signature import join_bucket_name
from runtime.tensors import Array
from runtime.writer import BundleWriter


def export_model(
    model: Any,
    params: Any = None,
    *,
    out: str | os.PathLike[str],
    overwrite: bool = False,
    dry_run: bool = False,
    savedmodel: str | os.PathLike[str] | None = None,
    tf_stablehlo: str | None = None,
    check_gpu: Sequence[str] | str = (),
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Export a model into a bundle.

    Args:
      model: an ExportSpec, or what its `model` takes.
      params: a tree of arrays, or a path that `--params` takes.
      out: the bundle to write.
      overwrite: replace a bundle that is there.
      dry_run: do everything but write and verify.
      savedmodel: a TensorFlow SavedModel to write as well, with the same params and
        proved on the same goldens. Both are written, or neither.
      tf_stablehlo: the StableHLO that the SavedModel's programs are written in, such as
        `1.13.7`; None for the newest that the installed TensorFlow reads.
      check_gpu: GPUs that the bundle has to compile for, and fit into, such as `["t4", "l4"]`. They
        need not be here, and nothing runs there; what was found is a report beside the bundle.
      progress: called with a sentence before each slow step; None for a line on stderr that
        changes, where that is a terminal, and nothing elsewhere.
      **options: fields of ExportSpec, which win over those of an ExportSpec given; and what
        the flags of these names say of inputs: `range={"ids": (0, 30521)}`,
        `pad={"ids": 1}`, `mask="attention_mask"`.

    Returns:
      What was exported, program by program.

    Raises:
      ExportError: the model cannot be exported as asked; nothing is left on disk.
      BundleError: the target exists, or another export was faster.
      OSError: the disk is full, or the target cannot be written.
    """
    _expect_path("out", out)
    if savedmodel is not None:
        _expect_path("savedmodel", savedmodel)
    spec = _as_spec(model, params, options).checked()
    verification.refuse_unverifiable(spec)
    for_tensorflow.check(spec, savedmodel, tf_stablehlo)
    cards = card_check.cards_for(check_gpu, spec)
    if cards and dry_run:
        raise ExportError("check_gpu: expected a bundle to be written, got dry_run")
    with contextlib.ExitStack() as stack:
        progress = progress or stack.enter_context(shown(stderr_console(), silent))
        honoured = stack.enter_context(honouring(spec))
        return _export(
            honoured, Path(out), overwrite, dry_run, savedmodel, tf_stablehlo, cards, progress
        )


def _export(
    honoured: Honoured,
    out: Path,
    overwrite: bool,
    dry_run: bool,
    savedmodel: str | os.PathLike[str] | None,
    tf_stablehlo: str | None,
    cards: Sequence[Card],
    progress: Progress,
) -> Report:
    spec = honoured.spec
    if dry_run:
        plan = _prepare(honoured, progress)
        programs = _lower_all(plan, progress)
        if savedmodel is not None:
            _, notes = symbolic.lower(plan, progress)
            plan = dataclasses.replace(plan, notes=(*plan.notes, *notes))
        return _report(plan, programs, None, {}, out)
    with (
        BundleWriter(out, overwrite=overwrite) as writer,
        for_tensorflow.target(savedmodel, writer.target, overwrite=overwrite) as tensorflow,
    ):
        plan = _prepare(honoured, progress)
        programs = _lower_all(plan, progress)
        progress("writing the bundle")
        manifest = write(writer, plan, programs)
        writer.write_manifest(manifest)
        found = verification.verify(writer.path, spec, _independent(plan), progress)
        manifest = dataclasses.replace(
            manifest,
            verified=found.platforms,
            drift=found.drift,
            row_mixing=found.mixing if found.platforms else manifest.row_mixing,
        )
        writer.write_manifest(manifest)
        on_cards = card_check.check(writer.path, cards, progress) if cards else None
        made = None
        if tensorflow:
            made, notes = for_tensorflow.make(tensorflow, writer.path, plan, tf_stablehlo, progress)
            made = dataclasses.replace(made, path=str(savedmodel))
            plan = dataclasses.replace(plan, notes=(*plan.notes, *notes))
        with tensorflow.committed() if tensorflow else contextlib.nullcontext():
            writer.commit()
    report = _report(plan, programs, manifest, found.programs, out)
    if on_cards is not None:
        keep_report(out, on_cards)
    return dataclasses.replace(
        report, savedmodel=made, compiles_for=tuple(card.name for card in cards)
    )


def _expect_path(what: str, value: object) -> None:
    """Raise ExportError for a place to write that is none on this machine."""
    if not isinstance(value, str | os.PathLike):
        raise ExportError(f"{what}: expected a path, got {value!r}")
    if reason := why_not_written(value):
        raise ExportError(f"{what}: {reason}")


def _as_spec(model: Any, params: Any, options: Mapping[str, Any]) -> ExportSpec:
    fields = [field.name for field in dataclasses.fields(ExportSpec)]
    own = list(inspect.signature(export_model).parameters)[:-1]
    known = sorted({*fields, *own, *OPTIONS})
    for name in options:
        if name not in known:
            raise ExportError(
                f"{name}: no such option{nearest(name, known)} (options: {', '.join(known)})"
            )
    changes = {name: value for name, value in options.items() if name in fields}
    if params is not None:
        changes["params"] = params
    spec = (
        dataclasses.replace(model, **changes)
        if isinstance(model, ExportSpec)
        else ExportSpec(model=model, **changes)
    )
    spec = with_own_inputs(spec)
    of_inputs = {name: options[name] for name in OPTIONS if name in options}
    if not of_inputs:
        return spec
    declared = with_options(read_field("inputs", spec.inputs), of_inputs)
    return dataclasses.replace(spec, inputs=declared)


def _prepare(honoured: Honoured, progress: Progress) -> Plan:
    plan = without_mesh(lambda: prepare(honoured.spec, progress, x64=honoured.x64), honoured.mesh)
    return dataclasses.replace(plan, notes=(*honoured.notes, *plan.notes))


def _lower_all(plan: Plan, progress: Callable[[str], None]) -> dict[Key, Lowered]:
    names = [axis.name for axis in plan.signature.axes]
    programs = {}
    with precision(plan.spec):
        for key, traced in plan.traced.items():
            progress(f"lowering {join_bucket_name(names, key[1], key[0])}")
            programs[key] = lower(traced, plan.spec.platforms)
    return programs


def _independent(plan: Plan) -> list[str]:
    """Return the names of the buckets whose structure shows that rows are independent."""
    names = [axis.name for axis in plan.signature.axes]
    return [
        join_bucket_name(names, key[1], key[0])
        for key, why in plan.rows_unproven.items()
        if why is None
    ]


def _largest(values: Array) -> float:
    """Return the largest finite value, whatever its sign."""
    sizes = np.abs(np.float64(values))
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes)))


def _report(
    plan: Plan,
    programs: Mapping[Key, Lowered],
    manifest: Manifest | None,
    measured: Mapping[str, Mapping[str, float]],
    out: Path,
) -> Report:
    names = [axis.name for axis in plan.signature.axes]
    rows = []
    for key, lowered in programs.items():
        bucket = join_bucket_name(names, key[1], key[0])
        found = measured.get(bucket, {})
        rows.append(
            ProgramReport(
                bucket=bucket,
                program_bytes=len(lowered.exported) + len(lowered.stablehlo),
                flops=found.get("flops"),
                bytes_accessed=found.get("bytes_accessed"),
                temp_bytes=found.get("temp_bytes"),
                max_error=found.get("max_error"),
                rows_unproven=plan.rows_unproven[key],
            )
        )
    return Report(
        bundle=str(out) if manifest else None,
        name=plan.spec.name,
        version=plan.spec.version,
        inputs=tuple(f"{s.name}: {s}" for s in plan.signature.inputs),
        outputs=tuple(describe_output(s) for s in plan.signature.outputs),
        output_format=describe_format(plan.output_format),
        accepted={
            name: f"{t.atol:.2g} + {t.rtol:.2g}·|expected|"
            for name, t in tolerances(plan)[plan.spec.platforms[0]].items()
        },
        scale={
            spec.name: max(_largest(e[i]) for _, _, e in plan.goldens)
            for i, spec in enumerate(plan.signature.outputs)
        },
        platforms=tuple(plan.spec.platforms),
        verified=manifest.verified if manifest else (),
        params_bytes=sum(a.nbytes for a in plan.arguments.values()),
        programs=tuple(rows),
        drift=dict(manifest.drift) if manifest else {},
        cast_drift=plan.cast_drift,
        row_mixing=manifest.row_mixing if manifest else (),
        notes=plan.notes,
    )
