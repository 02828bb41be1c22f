"""What is decided before a program is lowered: signature, params, traces, goldens."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from export import goldens as golden_rules
from export import infinities, param_values, params_files
from export.calling import Adapted
from export.checkpoints import take_subtree
from export.devices import named_device
from export.diagnosis import float_notes, naming_shapes
from export.errors import ExportError, ParamsError
from export.fields import parse_output
from export.golden_inputs import GoldenInputs, golden_inputs, with_goldens_read
from export.labels import LabelsOfFile
from export.lowering import Traced
from export.models import abstract, adapt, weights
from export.outputs import Key, name_outputs, output_specs
from export.packing import Packing
from export.random_bits import refuse_foreign_bits
from export.row_analysis import why_not_independent
from export.spec import ExportSpec
from export.storage import with_stored_params
from export.texts import Texts, open_texts
from export.tracing import bucket_keys, output_shapes, precision, trace_all
from runtime.compare import largest_difference
from runtime.entries import OutputFormat
from runtime.errors import nearest
from runtime.signature import Axis, Signature, TensorSpec
from runtime.tensors import Array


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided before a program is lowered.

    Attributes:
      spec: what was asked for.
      x64: whether 64-bit types are on.
      signature: inputs, outputs, axes.
      packing: where each param lies.
      arguments: what every program takes before its inputs, by name.
      constants: those of the params that were constants of the model's code, by name.
      traced: one trace per bucket, by (batch, axis sizes).
      rows_unproven: by bucket, what keeps its trace from showing that rows are independent; None
        where it shows that.
      goldens: (axis sizes, inputs, expected outputs), arrays in the signature's order.
      raw_goldens: for each golden the raw rows that its inputs were made of, or None.
      texts: the text inputs.
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
    goldens: tuple[tuple[dict[str, int], tuple[Array, ...], tuple[Array, ...]], ...]
    raw_goldens: tuple[Sequence[Mapping[str, str]] | None, ...]
    texts: Texts
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
    spec, texts = open_texts(spec, progress)
    inputs: tuple[TensorSpec, ...] = tuple(spec.inputs)  # type: ignore[arg-type]
    axes: tuple[Axis, ...] = tuple(spec.axes.values())  # type: ignore[arg-type]
    spec = with_goldens_read(spec)
    progress("reading params")
    params, around = _read(spec, progress)
    with naming_shapes(inputs, weights(spec.model, params)):
        adapted = adapt(
            spec.model, params, _abstract_inputs(spec, inputs, axes), around, spec.call_args
        )
    adapted = with_stored_params(adapted)
    given, narrowed = param_values.as_jax_keeps(adapted.params, x64=x64)
    cast = param_values.cast(given, adapted.castable, spec.dtype)
    flat = _Flat(adapted, [s.name for s in inputs])
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
        *texts.notes,
        *adapted.notes,
        *_wide_notes(signature, x64),
        *floats,
        *narrowed,
        *hoisted.notes,
    )
    output_format = _output_format(spec, signature)
    refuse_foreign_bits((one.jaxpr for one in traced.values()), spec.platforms)
    flat.device = named_device(next(iter(traced.values())).jaxpr)
    found = golden_inputs(spec, signature, texts.goldens)
    goldens = _goldens(spec, signature, found, flat, cast, given, progress)
    notes += tuple(infinities.notes(outputs, [expected for _, _, expected in goldens]))
    notes += tuple(param_values.nan_notes(cast))
    drift: dict[str, float] = {}
    if spec.dtype is not None:
        uncast = [flat.reference(given, arrays) for _, arrays, _ in goldens]
        for before, (_, _, after) in zip(uncast, goldens, strict=True):
            infinities.refuse_overflow(outputs, after, before, spec.dtype)
        drift = {
            o.name: max(
                largest_difference(np.asarray(a[i], np.float64), np.asarray(e[i], np.float64))
                for a, (_, _, e) in zip(uncast, goldens, strict=True)
            )
            for i, o in enumerate(outputs)
        }
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
        raw_goldens=tuple(golden.raw for golden in found),
        texts=texts,
        output_format=output_format,
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


class _Flat:
    """The adapted model with flat arguments and named outputs.

    Attributes:
      names: of the outputs, known after the first call.
      device: the one that the model names, if it does.
    """

    def __init__(self, adapted: Adapted, inputs: Sequence[str]) -> None:
        self._apply = adapted.apply
        self._inputs = tuple(inputs)
        self.names: list[str] = []
        self.device: jax.Device | None = None

    def call(self, params: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
        named = name_outputs(self._apply(params, dict(zip(self._inputs, inputs, strict=True))))
        self.names = [name for name, _ in named]
        return tuple(leaf for _, leaf in named)

    def reference(self, params: Mapping[str, Array], inputs: Sequence[Array]) -> tuple[Array, ...]:
        order = list(params)
        return golden_rules.reference(
            lambda p, x: self.call(dict(zip(order, p, strict=True)), x),
            [params[name] for name in order],
            inputs,
            self.device,
        )


def _goldens(
    spec: ExportSpec,
    signature: Signature,
    given: Sequence[GoldenInputs],
    flat: _Flat,
    params: Mapping[str, Array],
    uncast: Mapping[str, Array],
    progress: Callable[[str], None],
) -> tuple[tuple[dict[str, int], tuple[Array, ...], tuple[Array, ...]], ...]:
    found = []
    with precision(spec):
        for i, (arrays, sizes, _) in enumerate(given, 1):
            # A loop is run step by step here: of all that an export does this can take longest.
            progress(f"running the un-exported model op by op ({i}/{len(given)})")
            ordered = tuple(arrays[s.name] for s in signature.inputs)
            try:
                expected = flat.reference(params, ordered)
                golden_rules.refuse_non_finite(
                    signature.outputs,
                    expected,
                    signature.inputs,
                    lambda: param_values.not_finite(params, uncast),
                )
                _check_shapes(signature, expected, len(ordered[0]), sizes)
            except ParamsError:
                raise
            except ExportError as error:
                raise ExportError(f"{error}{_if_too_short(sizes, signature.axes)}") from error
            found.append((sizes, ordered, expected))
    return tuple(found)


def _check_shapes(
    signature: Signature, expected: Sequence[Array], rows: int, sizes: Mapping[str, int]
) -> None:
    for output, array in zip(signature.outputs, expected, strict=True):
        if (array.dtype.name, array.shape) != (output.dtype, output.concrete(rows, sizes)):
            raise ExportError(
                f"output {output.name!r}: expected {output} of the un-exported model, got "
                f"{array.dtype.name}{list(array.shape)}"
            )


def _if_too_short(sizes: Mapping[str, int], axes: Sequence[Axis]) -> str:
    """Return where a model failed that may need longer inputs, and how to declare that."""
    if not any(sizes[axis.name] < axis.sizes[0] for axis in axes):
        return ""
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    flags = " ".join(
        f"--axis {axis.name}=MIN..{','.join(map(str, axis.sizes))}"
        for axis in axes
        if sizes[axis.name] < axis.sizes[0]
    )
    return f"; this was at {shown}: if the model needs more than that, pass {flags}"


def _output_format(spec: ExportSpec, signature: Signature) -> OutputFormat:
    wanted = parse_output(spec.output)
    if wanted.kind == "raw":
        if spec.labels:
            raise ExportError(
                "labels: expected --output classification:logits or :probabilities with them, got raw"
            )
        return wanted
    names = [output.name for output in signature.outputs]
    if wanted.output is None and len(names) > 1:
        raise ExportError(
            f"output: expected {spec.output}:NAME with a NAME of {', '.join(names)}, got no name"
        )
    name = wanted.output or names[0]
    output = next((o for o in signature.outputs if o.name == name), None)
    if output is None:
        raise ExportError(
            f"output: expected one of {', '.join(names)}, got {name!r}{nearest(name, names)}"
        )
    embedding = wanted.kind == "embedding"
    if len(output.shape) != 2 or "float" not in output.dtype:
        size = "size" if embedding else "classes"
        raise ExportError(
            f"output {name!r}: expected floats [_, {size}] for {wanted.kind}, got {output}"
        )
    if embedding and spec.labels:
        raise ExportError("labels: expected none for an embedding, got some")
    if output.nonfinite and wanted.scores == "probabilities":
        raise ExportError(
            f"allow_infinite: expected no output of probabilities, got {name!r}; pass --output "
            f"classification:logits:{name} if it holds logits"
        )
    if spec.labels and len(spec.labels) != output.shape[1]:
        source = f" of {spec.labels.file}" if isinstance(spec.labels, LabelsOfFile) else ""
        raise ExportError(
            f"labels{source}: expected {output.shape[1]} for {output}, got {len(spec.labels)}"
        )
    return dataclasses.replace(wanted, output=name, labels=tuple(spec.labels))
