"""The model as functions of any batch, and of any size of its axes, as far as it allows that.

A program of a bundle has one shape; a SavedModel's function need not. Every param is an argument
of its own here, where programs take small ones packed.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from jax import export

from export import lowering
from export.constants import digest, movable_constants, with_constants
from export.errors import first_line
from export.lowering import Traced, configured, trace
from export.plan import Plan
from export.tracing import precision
from runtime.signature import BATCH, Axis, join_bucket_name
from runtime.tensors import numpy_dtype

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """One function of the SavedModel.

    Attributes:
      name: of its signature: what is fixed in it, `predict` where nothing is.
      sizes: batch and axes, None where they may have any size.
      params: names of what it takes before the inputs.
      exported: as `jax.export` serializes it.
      stablehlo: the version in which that is written.
    """

    name: str
    sizes: tuple[int | None, ...]
    params: tuple[str, ...]
    exported: bytes
    stablehlo: str


def lower(plan: Plan, progress: Tell) -> tuple[list[Function], list[str]]:
    """Lower the model with as many symbolic sizes as it allows, else bucket by bucket.

    Returns:
      Functions, and what was decided, a sentence each.
    """
    functions, notes = lower_symbolic(plan, progress)
    return functions or lower_fixed(plan, progress), notes


def lower_symbolic(plan: Plan, progress: Tell) -> tuple[list[Function], list[str]]:
    """Lower the model with as many symbolic sizes as it allows.

    Returns:
      Functions, the one that takes most last, none if even the batch has to be fixed; and
      what was decided, a sentence each.
    """
    names = [axis.name for axis in plan.signature.axes]
    notes: list[str] = []
    for symbolic in ([BATCH, *names], [BATCH]) if names else ([BATCH],):
        shown = " and ".join(["batch", *symbolic[1:]])
        fixed = f" of {' and '.join(names)}" if symbolic[1:] else ""
        progress(f"lowering for TensorFlow with any {shown}")
        try:
            return _lower_all(plan, symbolic), notes
        except Exception as error:  # noqa: BLE001 (JAX raises many kinds; faults of the model itself are raised with fixed sizes)
            why = f"the model does not lower with any {shown}: {first_line(error)}"
            notes = [f"the SavedModel has fixed sizes{fixed}, since {why}"]
    return [], notes


def lower_fixed(plan: Plan, progress: Tell) -> list[Function]:
    """Lower the model bucket by bucket.

    Raises:
      ExportError: it does not lower.
    """
    progress("lowering for TensorFlow, bucket by bucket")
    return _lower_all(plan, ())


def _lower_all(plan: Plan, symbolic: Collection[str]) -> list[Function]:
    with precision(plan.spec), _oldest_convention():
        return [_lower(plan, key) for key in _keys(plan, symbolic)]


def _oldest_convention() -> contextlib.AbstractContextManager[None]:
    """Lower in this block with the oldest calling convention that this jax writes.

    Older TensorFlows know it too. It is one from before Shardy, whose attributes are left out.
    """
    return configured(
        jax_export_calling_convention_version=export.minimum_supported_calling_convention_version,
        jax_use_shardy_partitioner=False,
    )


def _keys(plan: Plan, symbolic: Collection[str]) -> list[tuple[int | None, ...]]:
    """Return (batch, axis sizes) of each function; None for what is symbolic."""
    axes = [[None] if axis.name in symbolic else axis.sizes for axis in plan.signature.axes]
    batches = [None] if BATCH in symbolic else plan.spec.buckets
    return [(batch, *sizes) for sizes in itertools.product(*axes) for batch in batches]


def _lower(plan: Plan, key: tuple[int | None, ...]) -> Function:
    batch, *sizes = _dims(plan.signature.axes, key)
    named = dict(zip((axis.name for axis in plan.signature.axes), sizes, strict=True))
    inputs = [
        jax.ShapeDtypeStruct(spec.concrete(batch, named), numpy_dtype(spec.dtype))
        for spec in plan.signature.inputs
    ]
    traced, params = _trace(plan, inputs)
    lowered = lowering.lower(traced, plan.spec.platforms)
    return Function(
        name=_name(plan, key),
        sizes=key,
        params=params,
        exported=lowered.exported,
        stablehlo=lowered.stablehlo_version,
    )


def _dims(axes: Sequence[Axis], key: Sequence[int | None]) -> list[Any]:
    """Return a size for each of (batch, *axes): a number, or a symbol with its range."""
    names = _symbols([axis.name for axis in axes])
    bounds = [
        bound
        for name, axis, size in zip(names[1:], axes, key[1:], strict=True)
        if size is None
        for bound in (f"{name} >= {axis.minimum}", f"{name} <= {axis.sizes[-1]}")
    ]
    free = [name for name, size in zip(names, key, strict=True) if size is None]
    symbols = iter(export.symbolic_shape(", ".join(free), constraints=bounds) if free else ())
    return [next(symbols) if size is None else size for size in key]


def _symbols(axes: Sequence[str]) -> list[str]:
    """Name (batch, *axes) as `symbolic_shape` reads it: no name twice, and none of its words."""
    names: list[str] = []
    for name in (*axes, "batch"):
        while name in names or name in {"max", "min", "mod", "floordiv"}:
            name += "_"  # noqa: PLW2901 (until it is free)
        names.append(name)
    return [names[-1], *names[:-1]]


def _trace(plan: Plan, inputs: Sequence[Any]) -> tuple[Traced, tuple[str, ...]]:
    """Trace the model with each param as an argument, hoisted constants among them."""
    names = list(plan.params)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in plan.params.values()]
    traced = trace(lambda p, x: plan.call(dict(zip(names, p, strict=True)), x), shapes, inputs)
    if not plan.constants:
        return traced, tuple(names)
    known = {digest(array): name for name, array in plan.constants.items()}
    constants = {key: a for key, a in movable_constants(traced.jaxpr).items() if key in known}
    order = {key: i for i, key in enumerate(constants)}
    shapes += [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in constants.values()]
    traced = trace(with_constants(traced.jaxpr, order, len(names)), shapes, inputs)
    return traced, (*names, *(known[key] for key in constants))


def _name(plan: Plan, key: Sequence[int | None]) -> str:
    batch, *sizes = key
    fixed = [(a.name, s) for a, s in zip(plan.signature.axes, sizes, strict=True) if s is not None]
    if batch is None:
        return "-".join(f"{name}{size}" for name, size in fixed) or "predict"
    return join_bucket_name([name for name, _ in fixed], [size for _, size in fixed], batch)
