"""From a pure function to serialized programs, one per bucket.

Weights are arguments of every program. Programs carry no paths of the machine that made
them, and equal models make equal bytes.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func, stablehlo

from export.errors import ExportError, Untraceable, first_line, format_error, place
from export.jaxprs import equations
from runtime.program_forms import versions
from runtime.stablehlo import custom_calls

_CALLBACKS = {
    "debug_callback": "jax.debug.print or jax.debug.callback",
    "debug_print": "jax.debug.print",
    "pure_callback": "jax.pure_callback",
    "io_callback": "jax.experimental.io_callback",
    "host_callback": "a host callback",
    "outside_call": "a host callback",
}

# What JAX and Pallas say of a kernel that the device at hand cannot run.
_ABSENT_KERNELS = ("cuDNN is not detected", "Only interpret mode is supported", "No FFI handler")

# What JAX says of a PartitionSpec, or of a shard_map, that finds no mesh; a larger one would be refused.
_NO_MESH = re.compile("requires a non-empty mesh|not under a mesh context|mesh cannot be empty")

Flat = Callable[[Sequence[Any], Sequence[Any]], tuple[Any, ...]]


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


def reproducible() -> contextlib.AbstractContextManager[None]:
    """Keep source paths and call stacks out of what is lowered in this block."""
    return configured(
        jax_traceback_in_locations_limit=0,
        jax_include_full_tracebacks_in_locations=True,
        jax_hlo_source_file_canonicalization_regex=".*",
    )


@contextlib.contextmanager
def configured(**wanted: Any) -> Iterator[None]:
    """Set options of JAX in this block."""
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
      Untraceable: tracing fails.
      ExportError: the function calls back into Python.
    """
    jitted = jax.jit(function, keep_unused=True)
    arguments = (tuple(params), tuple(inputs))
    try:
        traced = jitted.trace(*arguments)
    except ExportError:
        raise
    except (Exception, SystemExit) as error:
        raise Untraceable(f"the model cannot be traced: {describe(error)}") from error
    jaxpr = traced.jaxpr
    refuse_callbacks(jaxpr)
    outputs = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.out_avals)
    return Traced(jitted, arguments, jaxpr, outputs)


def refuse_callbacks(jaxpr: Any) -> None:
    """Raise ExportError for anything that calls back into Python: a program cannot."""
    for equation in equations(jaxpr.jaxpr):
        name = equation.primitive.name
        if name in _CALLBACKS:
            raise ExportError(
                f"the model calls back into Python through {_CALLBACKS[name]} ({name}), and a "
                "program cannot; remove it from the inference path"
            )


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
        custom_calls=custom_calls(module),
        stablehlo_version=version[1].decode() if version else "unknown",
        calling_convention=exported.calling_convention_version,
        serialization=int(versions()["serialization"]),
    )


class NotRepresentable(Exception):
    """An operation that an older StableHLO does not have; the message is its name."""


def rewrite(artifact: bytes, version: str) -> bytes:
    """Write a StableHLO portable artifact in an older version.

    Composites become calls of what they are composed of: readers of older versions do not
    refine the shapes of one whose sizes were symbolic.

    Raises:
      NotRepresentable: an operation cannot be written so.
    """
    said: list[str] = []

    def hear(diagnostic: Any) -> bool:
        said.append(diagnostic.message)
        return True

    with ir.Context() as context, ir.Location.unknown():
        context.attach_diagnostic_handler(hear)
        try:
            module = stablehlo.deserialize_portable_artifact(context, artifact)
            for block in _blocks(module.operation):
                _call_composites(block)
            return bytes(stablehlo.serialize_portable_artifact(module, version))
        except ValueError as error:
            culprit = re.search(r"operation 'vhlo\.(\w+)_v\d+'", " ".join(said))
            what = f"stablehlo.{culprit[1]}" if culprit else (said or [str(error)])[0][:200]
            raise NotRepresentable(what) from None


def _blocks(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            yield block
            for inside in block.operations:
                yield from _blocks(inside.operation)


def _call_composites(block: Any) -> None:
    for view in list(block.operations):
        operation = view.operation
        if operation.name == "stablehlo.composite":
            call = func.CallOp(
                [result.type for result in operation.results],
                operation.attributes["decomposition"],
                list(operation.operands),
                ip=ir.InsertionPoint(operation),
                loc=operation.location,
            )
            for old, new in zip(operation.results, call.results, strict=True):
                old.replace_all_uses_with(new)
            operation.erase()


def describe(error: BaseException) -> str:
    """Return what went wrong in one line, with what to do where it is known."""
    text, line = str(error), first_line(error)
    if "host_callback" in text:
        return f"{line}; remove callbacks from the inference path"
    if "no compatibility guarantees" in text:
        targets = sorted(set(re.findall(r"custom_call @(\"[^\"]+\"|[\w.$]+)", text)))
        return (
            f"it calls kernels that no later jax promises to have: {', '.join(targets) or line}; "
            "use jax's own operations in their place for inference"
        )
    if _NO_MESH.search(text):
        return (
            f"{type(error).__name__}: it shards by names of axes, and no mesh is in force"
            f"{place(error)}; leave that out for inference, or export in a mesh of one device"
        )
    if "Cannot interpret value of type" in text or "not found for platform" in text:
        return f"{line}; name the platforms it has kernels for with --platforms"
    if any(sign in text for sign in _ABSENT_KERNELS):
        return (
            f"{type(error).__name__}: {line}; this machine does not have that kernel: use jax's own "
            "operations in its place for inference, or export where it runs"
        )
    return format_error(error)
