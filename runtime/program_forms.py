"""The forms in which a bundle keeps a program, read and written. The only caller of jax.export.

`.exported` is what `jax.export` wrote, and `.stablehlo` is what is in it: where this jax does not
read the wrapper of the first, the second is put into a wrapper of its own. JAX does not promise

* `jax._src.export.serialization`, for the version of the wrapper
* that a `jax.export.Exported` is a dataclass, and what its `mlir_module_serialized` holds
* that a refused program says something of a compatibility window
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import export
from jax._src.export import serialization

from runtime.customcalls import ALLOWED
from runtime.device import Device
from runtime.entries import File, ProgramEntry
from runtime.errors import BundleError, IncompatibleProgram, IntegrityError, first_line
from runtime.jax_settings import lifted
from runtime.manifest import Manifest
from runtime.stablehlo import Contents, contents
from runtime.tensors import numpy_dtype


def jax_version() -> str:
    """Return the version of the jax that runs."""
    return str(jax.__version__)


def versions() -> dict[str, str]:
    """Return the versions of what writes wrappers here: jax, jaxlib, calling convention, serialization."""
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib_version(),
        "calling_convention": str(export.maximum_supported_calling_convention_version),
        "serialization": str(serialization._SERIALIZATION_VERSION),  # noqa: SLF001
    }


def jaxlib_version() -> str:
    """Return the version of the jaxlib that runs."""
    return importlib.metadata.version("jaxlib")


class Unreadable(Exception):
    """A form of a program that this jax does not read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """Shapes and dtypes of what a program takes and returns."""

    params: tuple[jax.ShapeDtypeStruct, ...]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, entry: ProgramEntry, manifest: Manifest, device: Device | None) -> "Arguments":
        """Return what the manifest says of a program, for a device if there is one."""
        sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)

        def spec(dtype: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, numpy_dtype(dtype), sharding=sharding)

        specs = (manifest.signature.inputs, manifest.signature.outputs)
        inputs, outputs = (
            tuple(spec(s.dtype, s.concrete(entry.batch, entry.axes)) for s in part)
            for part in specs
        )
        return cls(
            tuple(spec(a.dtype, a.shape) for a in manifest.params.arguments), inputs, outputs
        )


def rewrap(artifact: bytes, entry: ProgramEntry, manifest: Manifest) -> bytes:
    """Wrap a StableHLO artifact as the jax that runs would have exported it.

    Args:
      artifact: the bytes of `entry.stablehlo`, digest checked.
      entry: the program's entry in the manifest.
      manifest: the manifest, for its signature, params and platforms.

    Raises:
      IncompatibleProgram: this jax does not read it.
      IntegrityError: it makes other custom calls than the manifest lists.
    """
    with lifted(x64=manifest.x64):
        try:
            return bytes(_wrapped(artifact, entry, manifest)[0].serialize())
        except BundleError:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, Unreadable) else first_line(error)
            raise IncompatibleProgram(
                f"{entry.stablehlo.path}: {reason}; re-export the model with a jax near this one"
            ) from error


def read_program(
    read: Callable[[File], bytes], entry: ProgramEntry, manifest: Manifest
) -> tuple[export.Exported, Contents, str]:
    """Read a program in the first of its forms that this jax reads.

    Args:
      read: returns the bytes of a file, digest checked.
      entry: the program's entry in the manifest.
      manifest: the manifest, for its signature, params and platforms.

    Returns:
      The program, what is in it, and why its `.exported` form was not taken, empty if it was.

    Raises:
      Unreadable: this jax reads neither form.
      IncompatibleProgram: it makes custom calls that are not allowed.
      IntegrityError: it makes other custom calls than the manifest lists.
    """
    try:
        return *_unwrapped(read(entry.exported), entry), ""
    except Unreadable as error:
        # What this very jax has written and cannot read is damaged, not too old or too new.
        if manifest.exporter.get("jax") == jax.__version__ and "window" not in str(error):
            raise
        reason = str(error)
    try:
        return *_wrapped(read(entry.stablehlo), entry, manifest), reason
    except Unreadable as error:
        raise Unreadable(f"{reason}; {entry.stablehlo.path}: {error}") from error


def _unwrapped(data: bytes, entry: ProgramEntry) -> tuple[export.Exported, Contents]:
    try:
        exported = export.deserialize(bytearray(data))
    except Exception as error:
        raise Unreadable(first_line(error)) from error
    convention = exported.calling_convention_version
    low = export.minimum_supported_calling_convention_version
    high = export.maximum_supported_calling_convention_version
    if not low <= convention <= high:
        raise Unreadable(
            f"calling convention {convention} is outside of this jax's window, {low} to {high}"
        )
    artifact = exported.mlir_module_serialized
    return exported, _expect_custom_calls(artifact, entry.exported, entry.custom_calls)


def _wrapped(
    artifact: bytes, entry: ProgramEntry, manifest: Manifest
) -> tuple[export.Exported, Contents]:
    """Make what jax.export would have made: of an empty function, with the program put in."""
    found = _expect_custom_calls(artifact, entry.stablehlo, entry.custom_calls)
    arguments = Arguments.of(entry, manifest, None)

    # A lambda, as what was exported: its name is in the wrapper.
    jitted = jax.jit(
        lambda _params, _inputs: tuple(jnp.zeros(s.shape, s.dtype) for s in arguments.outputs),
        keep_unused=True,
    )
    exported = export.export(jitted, platforms=manifest.platforms)(
        arguments.params, arguments.inputs
    )
    return dataclasses.replace(exported, mlir_module_serialized=artifact), found


def expect_signature(exported: export.Exported, arguments: Arguments) -> None:
    """Raise ValueError unless a program takes and returns what the manifest describes."""
    expected = [(s.shape, s.dtype) for s in (*arguments.params, *arguments.inputs)]
    if expected != [(tuple(a.shape), a.dtype) for a in exported.in_avals]:
        raise ValueError("its arguments are not those the manifest describes")
    expected = [(s.shape, s.dtype) for s in arguments.outputs]
    if expected != [(tuple(a.shape), a.dtype) for a in exported.out_avals]:
        raise ValueError("its outputs are not those the manifest describes")


def _expect_custom_calls(artifact: bytes, file: File, listed: tuple[str, ...]) -> Contents:
    """Check the custom calls of a program against the manifest, and against what is allowed.

    In the files' own bytes, before anything of them is compiled: a custom call runs what it names.
    """
    try:
        found = contents(artifact)
    except ValueError as error:
        raise Unreadable(str(error)) from error
    if found.custom_calls != listed:
        raise IntegrityError(
            f"{file.path}: expected the custom calls that the manifest lists, "
            f"{_list_of(listed)}, got {_list_of(found.custom_calls)}"
        )
    strange = [target for target in found.custom_calls if target not in ALLOWED]
    if strange:
        raise IncompatibleProgram(
            f"{file.path}: expected custom calls that jax keeps, got {strange[0]!r}; "
            "use jax's own operations in its place"
        )
    return found


def _list_of(targets: Sequence[str]) -> str:
    return ", ".join(targets) or "none"
