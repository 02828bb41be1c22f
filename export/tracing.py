"""A model traced once for each bucket, with its params packed and its constants among them."""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from export.devices import refuse_several_devices
from export.errors import ExportError, Untraceable
from export.hoisting import TAKE_AS_PARAMS, Hoisted, hoist
from export.lowering import Traced, trace
from export.models.frameworks import closed_over, framework_in
from export.models.registry import abstract
from export.outputs import Key
from export.packing import Packing, plan_packing
from export.spec import ExportSpec
from runtime.signature import Axis, TensorSpec, join_bucket_name
from runtime.tensors import Array

# A model: params by name, and inputs in their order, to outputs.
Call = Callable[[Mapping[str, Any], Sequence[Any]], tuple[Any, ...]]


def trace_all(
    spec: ExportSpec,
    call: Call,
    params: dict[str, Array],
    inputs: Sequence[TensorSpec],
    axes: Sequence[Axis],
    progress: Callable[[str], None],
) -> tuple[dict[Key, Traced], Packing, dict[str, Array], Hoisted]:
    """Trace a model for each bucket, and take what constants are too large out of the programs.

    Args:
      spec: what was asked for.
      call: the model.
      params: by name.
      inputs: of the model.
      axes: the bucketed axes beside the batch.
      progress: called with a sentence before each trace.

    Returns:
      The traces, the places of params and constants in their arguments, these, and what was taken out.

    Raises:
      ExportError: the model cannot be traced, or takes several devices.
    """
    packing = plan_packing(params)
    arguments = packing.pack(params)
    names = [axis.name for axis in axes]
    traced: dict[Key, Traced] = {}

    def one_trace(batch: int, sizes: tuple[int, ...]) -> Traced:
        shapes = abstract(inputs, batch, dict(zip(names, sizes, strict=True)))
        return _trace_one(spec, call, packing, arguments, list(shapes.values()))

    for key in bucket_keys(spec.buckets, axes):
        progress(f"tracing {join_bucket_name(names, key[1], key[0])}")
        try:
            traced[key] = one_trace(*key)
        except Untraceable:
            # Where rows are shared among devices, too few to share are only the outer reason.
            count = jax.local_device_count()
            if count > 1:
                with contextlib.suppress(Untraceable):
                    one_trace(key[0] * count, tuple(size * count for size in key[1]))
            raise
    hoisted = hoist([one.jaxpr for one in traced.values()], packing, _on_closures(spec.model))
    if hoisted.constants:
        taken = arguments | hoisted.packing.pack(hoisted.constants)
        for key, one in traced.items():
            progress(f"hoisting constants of {join_bucket_name(names, key[1], key[0])}")
            with precision(spec):
                traced[key] = trace(hoisted.apply(one.jaxpr), _shapes_of(taken), one.arguments[1])
        packing, arguments = packing + hoisted.packing, taken
    return traced, packing, arguments, hoisted


def _on_closures(model: Any) -> str | None:
    """Return what to do about weights that a function closes over; None for a model of a framework."""
    if framework_in(model):
        return None
    if found := closed_over(model):
        name, framework = found
        return (
            f"the function closes over {name!r}, a model of {framework}: export that model itself, or "
            "pass its weights as params"
        )
    return TAKE_AS_PARAMS


def _trace_one(
    spec: ExportSpec,
    call: Call,
    packing: Packing,
    arguments: Mapping[str, Array],
    shapes: Sequence[Any],
) -> Traced:
    with precision(spec):
        one = trace(lambda p, x: call(packing.unpack(p), x), _shapes_of(arguments), shapes)
    refuse_several_devices(one.jaxpr)
    return one


def precision(spec: ExportSpec) -> Any:
    """Set the precision of dots in this block; tracing and lowering both look at it."""
    return jax.default_matmul_precision(spec.matmul_precision)


def _shapes_of(arguments: Mapping[str, Array]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments.values()]


def bucket_keys(buckets: Sequence[int], axes: Sequence[Axis]) -> list[Key]:
    """Return (batch, axis sizes) of each bucket, in the order in which they are traced."""
    sizes = itertools.product(*(axis.sizes for axis in axes))
    return [(batch, size) for size in sizes for batch in buckets]


def output_shapes(
    spec: ExportSpec,
    call: Call,
    packing: Packing,
    arguments: Mapping[str, Array],
    traced: Mapping[Key, Traced],
    inputs: Sequence[TensorSpec],
    axes: Sequence[Axis],
) -> dict[Key, Any]:
    """Return output shapes at each bucket, and at sizes beside them where there is only one."""
    shapes: dict[Key, Any] = {key: one.outputs for key, one in traced.items()}
    batch, sizes = next(iter(traced))
    extra: list[Key] = []
    if len(spec.buckets) == 1:
        extra.append((batch + 1, sizes))
    for i, axis in enumerate(axes):
        if len(axis.sizes) == 1 and axis.sizes[0] > axis.minimum:
            shorter = max(axis.minimum, sizes[i] // 2)
            extra.append((batch, (*sizes[:i], shorter, *sizes[i + 1 :])))
    for key in extra:
        named = dict(zip((axis.name for axis in axes), key[1], strict=True))
        given = list(abstract(inputs, key[0], named).values())
        try:
            shapes[key] = _trace_one(spec, call, packing, arguments, given).outputs
        except ExportError:
            continue  # the model takes this one size only; its shapes are all there is to go by
    return shapes
