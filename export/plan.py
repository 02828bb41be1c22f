"""What is decided before a program is lowered: signature, params, traces, goldens."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from export import infinities, param_values, params_files
from export.checkpoints import take_subtree
from export.devices import named_device
from export.diagnosis import float_notes, naming_shapes
from export.golden_inputs import golden_inputs, with_goldens_read
from export.lowering import Traced
from export.models.registry import abstract, adapt, weights
from export.output_format import output_format
from export.outputs import Key, output_specs
from export.packing import Packing
from export.random_bits import refuse_foreign_bits
from export.raw_inputs import RawInputs, open_raw_inputs
from export.reference import FlatModel, Golden, answer_goldens, cast_drift
from export.row_analysis import why_not_independent
from export.spec import ExportSpec
from export.storage import with_stored_params
from export.tracing import bucket_keys, output_shapes, trace_all
from runtime.entries import OutputFormat
from runtime.preprocessing.raw_goldens import RawRow
from runtime.signature import Axis, Signature, TensorSpec
from runtime.tensors import Array


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided before a program is lowered.

    Attributes:
      spec: what was asked for.
      x64: whether 64-bit types are on.
      signature: inputs, outputs, axes.
      packing: the place of each param in the arguments.
      arguments: what every program takes before its inputs, by name.
      constants: those of the params that were constants of the model's code, by name.
      traced: one trace per bucket, by (batch, axis sizes).
      rows_unproven: by bucket, what keeps its trace from showing that rows are independent; None
        where it shows that.
      goldens: (axis sizes, inputs, expected outputs), arrays in the signature's order.
      raw_goldens: for each golden the raw rows that its inputs were made of, or None.
      raw: the raw inputs, texts and images.
      output_format: how predictions are written.
      notes: what was decided on the user's behalf.
      cast_drift: output to the largest change that casting params made.
      call: the model itself, (params by name, inputs in order) to outputs in order.
      params: what it takes, unpacked.
    """

    spec: ExportSpec
    x64: bool
    signature: Signature
    packing: Packing
    arguments: dict[str, Array]
    constants: dict[str, Array]
    traced: dict[Key, Traced]
    rows_unproven: dict[Key, str | None]
    goldens: tuple[Golden, ...]
    raw_goldens: tuple[Sequence[RawRow] | None, ...]
    raw: RawInputs
    output_format: OutputFormat
    notes: tuple[str, ...]
    cast_drift: dict[str, float]
    call: Callable[[Mapping[str, Any], Sequence[Any]], tuple[Any, ...]]
    params: dict[str, Array]


def prepare(spec: ExportSpec, progress: Callable[[str], None], *, x64: bool) -> Plan:
    """Decide everything that can be decided without lowering.

    Raises:
      ExportError: the model cannot be exported as asked.
    """
    declared: tuple[TensorSpec, ...] = tuple(spec.inputs)  # type: ignore[arg-type]
    spec, raw = open_raw_inputs(spec, progress)
    inputs: tuple[TensorSpec, ...] = tuple(spec.inputs)  # type: ignore[arg-type]
    axes: tuple[Axis, ...] = tuple(spec.axes.values())  # type: ignore[arg-type]
    spec = with_goldens_read(spec)
    progress("reading params")
    params, around = _read(spec, progress)
    with naming_shapes(declared, weights(spec.model, params)):
        adapted = adapt(
            spec.model, params, _abstract_inputs(spec, declared, axes), around, spec.call_args
        )
    adapted = dataclasses.replace(adapted, apply=raw.before(adapted.apply))
    adapted = with_stored_params(adapted)
    given, narrowed = param_values.as_jax_keeps(adapted.params, x64=x64)
    cast = param_values.cast(given, adapted.castable, spec.dtype)
    flat = FlatModel(adapted, [s.name for s in inputs])
    with naming_shapes(inputs, cast):
        traced, packing, arguments, hoisted = trace_all(
            spec, flat.call, cast, inputs, axes, progress
        )
    floats = float_notes(inputs, next(iter(traced.values())).jaxpr, len(arguments))
    outputs = output_specs(
        flat.names,
        output_shapes(spec, flat.call, packing, arguments, traced, inputs, axes),
        [a.name for a in axes],
    )
    outputs = infinities.declare(outputs, spec.allow_infinite)
    signature = Signature(inputs=inputs, outputs=outputs, axes=axes)
    notes = (
        *raw.notes,
        *adapted.notes,
        *_wide_notes(signature, x64),
        *floats,
        *narrowed,
        *hoisted.notes,
    )
    formatted = output_format(spec, signature)
    refuse_foreign_bits((one.jaxpr for one in traced.values()), spec.platforms)
    flat.device = named_device(next(iter(traced.values())).jaxpr)
    questions = golden_inputs(spec, signature, raw.goldens)
    goldens = answer_goldens(spec, signature, questions, flat, cast, given, progress)
    notes += tuple(infinities.notes(outputs, [expected for _, _, expected in goldens]))
    notes += tuple(param_values.nan_notes(cast))
    drift = {} if spec.dtype is None else cast_drift(flat, given, signature, goldens, spec.dtype)
    return Plan(
        spec=spec,
        x64=x64,
        signature=signature,
        packing=packing,
        arguments=arguments,
        constants=hoisted.constants,
        traced=traced,
        rows_unproven={
            key: why_not_independent(one.jaxpr, len(arguments)) for key, one in traced.items()
        },
        goldens=goldens,
        raw_goldens=tuple(golden.raw for golden in questions),
        raw=raw,
        output_format=formatted,
        notes=notes,
        cast_drift=drift,
        call=flat.call,
        params=cast,
    )


def _read(
    spec: ExportSpec, progress: Callable[[str], None]
) -> tuple[Any, tuple[Mapping[str, Any], ...]]:
    """Return the params, and what `params_path` took them out of, the innermost first."""
    tree = spec.params
    if isinstance(tree, str | os.PathLike):
        tree = params_files.read(tree, allow_pickle=spec.allow_pickle, progress=progress)
    if tree is None or spec.params_path is None:
        return tree, ()
    return take_subtree(tree, spec.params_path)


def _abstract_inputs(
    spec: ExportSpec, inputs: Sequence[TensorSpec], axes: Sequence[Axis]
) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Return shapes of the inputs of every bucket, behind those of a few rows in the smallest one.

    These divide among all devices, so that a model that shards them fails for a better reason.
    """
    names = [axis.name for axis in axes]
    keys = bucket_keys(spec.buckets, axes)
    return [
        abstract(inputs, batch, dict(zip(names, sizes, strict=True)))
        for batch, sizes in [(2 * jax.local_device_count(), keys[0][1]), *keys]
    ]


def _wide_notes(signature: Signature, x64: bool) -> list[str]:
    wide = [s for s in signature.inputs if s.dtype.endswith("64")]
    if not x64 or not wide:
        return []
    note = (
        f"64-bit types are on for {_with_dtypes(wide)}; 32-bit mode would have turned them into "
        f"{', '.join(sorted({s.dtype.replace('64', '32') for s in wide}))}"
    )
    outputs = [s for s in signature.outputs if s.dtype.endswith("64")]
    widened = f", and so it would the outputs {_with_dtypes(outputs)}" if outputs else ""
    return [note + widened]


def _with_dtypes(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name!r} ({s.dtype})" for s in specs)
