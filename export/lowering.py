"""From a pure function to serialized programs, one per bucket.

Weights are arguments of every program. What a closure holds would become constants of
each program; constants over 1 MiB are hoisted into the params. Programs carry no paths
of the machine that made them, and equal models give equal bytes.
"""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax._src.export import serialization  # for its version number, which jax.export does not show
from jax.extend import core

from export.errors import ExportError, first_line
from runtime.tensors import Array

HOIST_BYTES = 1 << 20

_CALLBACKS = {
    "debug_callback": "jax.debug.print or jax.debug.callback",
    "debug_print": "jax.debug.print",
    "pure_callback": "jax.pure_callback",
    "io_callback": "jax.experimental.io_callback",
    "host_callback": "a host callback",
    "outside_call": "a host callback",
}

# Primitives that call a function and do no more, once nothing is differentiated. JAX makes
# what loops and branches close over arguments of theirs by itself, but for what is in a
# function under jit inside of one.
_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)

# What JAX and Pallas say of a kernel that the device at hand cannot run.
_ABSENT_KERNELS = ("cuDNN is not detected", "Only interpret mode is supported", "No FFI handler")

Flat = Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]]
Replace = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Traced:
    """A function traced for one bucket.

    Attributes:
      jitted: the function under jit; lowering it again finds the trace.
      arguments: shapes and dtypes of (params, inputs).
      jaxpr: the closed jaxpr.
      outputs: shapes and dtypes.
    """

    jitted: Any
    arguments: tuple[Any, Any]
    jaxpr: Any
    outputs: tuple[jax.ShapeDtypeStruct, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Lowered:
    """A serialized program.

    Attributes:
      exported: what `jax.export` serializes.
      stablehlo: the portable artifact inside it.
      custom_calls: targets of its custom calls, sorted.
      stablehlo_version: such as `1.18.0`.
      calling_convention: of jax.export.
      serialization: version of jax.export's wrapper.
    """

    exported: bytes
    stablehlo: bytes
    custom_calls: tuple[str, ...]
    stablehlo_version: str
    calling_convention: int
    serialization: int


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Keep source paths and call stacks out of what is lowered in this block."""
    wanted: dict[str, Any] = {
        "jax_traceback_in_locations_limit": 0,
        "jax_hlo_source_file_canonicalization_regex": ".*",
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def trace(function: Flat, params: Sequence[Any], inputs: Sequence[Any]) -> Traced:
    """Trace a function for one bucket.

    Args:
      function: (params, inputs) to outputs, flat tuples of arrays.
      params: shapes and dtypes.
      inputs: shapes and dtypes.

    Raises:
      ExportError: tracing fails, or the function calls back into Python.
    """
    jitted = jax.jit(function, keep_unused=True)
    arguments = (tuple(params), tuple(inputs))
    try:
        traced = jitted.trace(*arguments)
    except ExportError:
        raise
    except (Exception, SystemExit) as error:
        raise ExportError(f"the model cannot be traced: {describe(error)}") from error
    jaxpr = traced.jaxpr
    refuse_callbacks(jaxpr)
    outputs = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.out_avals)
    return Traced(jitted, arguments, jaxpr, outputs)


def refuse_callbacks(jaxpr: Any) -> None:
    """Raise ExportError for anything that calls back into Python: a program cannot."""
    for equation in _equations(jaxpr.jaxpr):
        name = equation.primitive.name
        if name in _CALLBACKS:
            raise ExportError(
                f"the model calls back into Python through {_CALLBACKS[name]} ({name}), and a "
                "program cannot; remove it from the inference path"
            )


def floating_dtypes(jaxpr: Any) -> set[str]:
    """Give the floating dtypes that a computation passes through."""
    found = {v.aval for v in (*jaxpr.jaxpr.invars, *jaxpr.jaxpr.constvars)}
    for equation in _equations(jaxpr.jaxpr):
        found |= {v.aval for v in equation.outvars}
    dtypes = {a.dtype for a in found if hasattr(a, "dtype")}
    return {d.name for d in dtypes if jax.numpy.issubdtype(d, jax.numpy.floating)}


def large_constants(jaxpr: Any) -> dict[str, Array]:
    """Find the constants over 1 MiB that lowering would bake in, by digest."""
    return _large(_constants(jaxpr, _CALLS))


def stuck_constants(jaxpr: Any) -> dict[str, Array]:
    """Find the constants over 1 MiB that `with_constants` cannot take out, by digest."""
    found = _large(_constants(jaxpr, None))
    return {
        digest: array for digest, array in found.items() if digest not in large_constants(jaxpr)
    }


def with_constants(jaxpr: Any, order: Mapping[str, int], count: int) -> Flat:
    """Make a function that takes large constants behind its params.

    Args:
      jaxpr: of a function of `count` params and some inputs.
      order: digest of a constant to its place behind the params.
      count: number of the function's own params.
    """

    def function(params: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
        def replaced(constant: Any) -> Any:
            if not _is_large(constant):
                return constant
            return params[count + order[_digest(np.asarray(constant))]]

        return tuple(_evaluate(jaxpr, [*params[:count], *inputs], replaced))

    return function


def lower(traced: Traced, platforms: Sequence[str]) -> Lowered:
    """Lower a traced function for its platforms and serialize it.

    Raises:
      ExportError: it does not lower for a platform, or could not be loaded again.
    """
    try:
        exported = export.export(traced.jitted, platforms=tuple(platforms))(*traced.arguments)
        data = bytes(exported.serialize())
    except Exception as error:
        raise ExportError(
            f"the model cannot be lowered for {', '.join(platforms)}: {describe(error)}"
        ) from error
    module = exported.mlir_module_serialized
    version = re.search(rb"StableHLO_v([0-9.]+)", module[:64])
    return Lowered(
        exported=data,
        stablehlo=bytes(module),
        custom_calls=_custom_calls(exported, module),
        stablehlo_version=version[1].decode() if version else "unknown",
        calling_convention=exported.calling_convention_version,
        serialization=serialization._SERIALIZATION_VERSION,  # noqa: SLF001
    )


def describe(error: BaseException) -> str:
    """Say what went wrong in one line, with what to do where it is known."""
    text, line = str(error), first_line(error)
    if "host_callback" in text:
        return f"{line}; remove callbacks from the inference path"
    if "no compatibility guarantees" in text:
        targets = sorted(set(re.findall(r"custom_call @(\"[^\"]+\"|[\w.$]+)", text)))
        return (
            f"it calls kernels that no later jax promises to have: {', '.join(targets) or line}; "
            "use jax's own operations in their place for inference"
        )
    if "Cannot interpret value of type" in text or "not found for platform" in text:
        return f"{line}; name the platforms it has kernels for with --platforms"
    if any(sign in text for sign in _ABSENT_KERNELS):
        return (
            f"{type(error).__name__}: {line}; this machine does not have that kernel: use jax's own "
            "operations in its place for inference, or export where it runs"
        )
    return f"{type(error).__name__}: {line}"


def _custom_calls(exported: export.Exported, module: bytes) -> tuple[str, ...]:
    if b"custom_call" not in module:
        return ()
    text = exported.mlir_module()
    return tuple(sorted(set(re.findall(r"stablehlo\.custom_call @(\"[^\"]+\"|[\w.$]+)", text))))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(equation):
            yield from _equations(inner.jaxpr)


def _inner(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs inside an equation: jit, scan, while, cond, custom derivatives."""
    for value in equation.params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item if hasattr(item, "consts") else core.ClosedJaxpr(item, ())  # type: ignore[attr-defined]


def _is_large(constant: Any) -> bool:
    return getattr(constant, "nbytes", 0) > HOIST_BYTES


def _large(constants: Iterable[Any]) -> dict[str, Array]:
    arrays = (np.asarray(constant) for constant in constants if _is_large(constant))
    return {_digest(array): array for array in arrays}


def _constants(jaxpr: Any, opened: Collection[str] | None) -> Iterator[Any]:
    """Yield the constants at the top and inside the primitives `opened`; None is all."""
    yield from jaxpr.consts
    for equation in jaxpr.jaxpr.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, core.Literal))
        if opened is None or equation.primitive.name in opened:
            for inner in _inner(equation):
                yield from _constants(inner, opened)


def _evaluate(jaxpr: Any, arguments: Sequence[Any], replaced: Replace) -> list[Any]:
    """Evaluate a closed jaxpr with other constants; what holds none of them stays as it is."""
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return replaced(variable.val) if isinstance(variable, core.Literal) else values[variable]

    values.update(zip(jaxpr.jaxpr.constvars, map(replaced, jaxpr.consts), strict=True))
    values.update(zip(jaxpr.jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.jaxpr.eqns:
        given = [read(v) for v in equation.invars]
        inside = list(_inner(equation)) if equation.primitive.name in _CALLS else []
        if any(_is_large(c) for jaxpr in inside for c in _constants(jaxpr, _CALLS)):
            results = _evaluate(inside[0], given, replaced)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            # Up to jax 0.11 a pair, from 0.12 on keywords alone.
            functions, keywords = bound if isinstance(bound, tuple) else ((), bound)
            with equation.ctx.manager:
                result = equation.primitive.bind(*functions, *given, **keywords)
            results = result if equation.primitive.multiple_results else [result]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.jaxpr.outvars]


def _digest(array: Array) -> str:
    data = np.asarray(array, order="C").reshape(-1).view(np.uint8)
    head = f"{array.dtype.name}{array.shape}".encode()
    return hashlib.sha256(head + data.data).hexdigest()
