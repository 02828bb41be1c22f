"""JAX's settings in force around an export: what is honoured, and what is kept away from it.

What changes numbers is honoured, as the user's own runs of the model had it: 64-bit types and
the precision of matrix products, which the manifest records; the implementation of random keys
and other choices of operations, which are in the programs. What only checks or guards is
lifted, and so is a mesh of several devices: a program is for one.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from export.errors import ExportError, SeveralDevices, Untraceable
from export.lowering import configured, reproducible
from export.spec import ExportSpec
from runtime.jax_settings import lifted

# Checks that jax.numpy adds to what it traces. They have no context, and so are none of the runtime's.
_ERROR_CHECKS = {f"jax_error_checking_behavior_{of}": "ignore" for of in ("nan", "divide", "oob")}


@dataclasses.dataclass(frozen=True, slots=True)
class Honoured:
    """What an export goes by.

    Attributes:
      spec: with the matmul precision that is in force, where it names none.
      x64: whether 64-bit types are on.
      notes: what was taken from the settings in force, a sentence each.
      mesh: of several devices, which was in force and is lifted.
    """

    spec: ExportSpec
    x64: bool
    notes: tuple[str, ...]
    mesh: Mesh | None


@contextlib.contextmanager
def honouring(spec: ExportSpec) -> Iterator[Honoured]:
    """Apply the settings in force to an export, and lift the others, in this thread."""
    x64 = _needs_wide_types(spec)
    mesh, abstract = jax.sharding.get_mesh(), jax.sharding.get_abstract_mesh()
    spec, notes = _with_precision(spec)
    unchecked = configured(**_ERROR_CHECKS)
    with lifted(x64=x64), _on_one_device(abstract), reproducible(), unchecked:
        yield Honoured(spec, x64, notes, mesh if mesh.size > 1 else None)


def without_mesh[T](prepare: Callable[[], T], mesh: Mesh | None) -> T:
    """Return what is made without a mesh that was in force.

    Args:
      prepare: traces a model.
      mesh: of several devices; None where there was none.

    Raises:
      SeveralDevices: the model needs the mesh.
      ExportError: as `prepare` does.
    """
    try:
        return prepare()
    except Untraceable:
        if mesh is None:
            raise
        # Whether that is for want of the mesh, a trace within it shows, and what it is for.
        try:
            with jax.set_mesh(mesh):
                prepare()
        except SeveralDevices:
            raise
        except ExportError:
            pass
        raise


def _needs_wide_types(spec: ExportSpec) -> bool:
    inputs: Any = spec.inputs
    return bool(jax.config.jax_enable_x64) or any(s.dtype.endswith("64") for s in inputs)


def _with_precision(spec: ExportSpec) -> tuple[ExportSpec, tuple[str, ...]]:
    """Return the spec with the precision that its dots get, and what there is to say of that."""
    in_force = jax.config.jax_default_matmul_precision
    if in_force is None or in_force == spec.matmul_precision:
        return spec, ()
    if spec.matmul_precision is not None:
        note = (
            f"matmul precision {spec.matmul_precision!r}, as asked for, and not {in_force!r}, "
            "which jax_default_matmul_precision says"
        )
        return spec, (note,)
    note = f"matmul precision {in_force!r}, as jax_default_matmul_precision says"
    return dataclasses.replace(spec, matmul_precision=in_force), (note,)


def _on_one_device(mesh: AbstractMesh) -> contextlib.AbstractContextManager[Any]:
    """Enter a mesh of one device again, but of the CPU, where the model is run op by op."""
    if mesh.size != 1:
        return contextlib.nullcontext()
    cpu = np.array(jax.local_devices(backend="cpu")[:1]).reshape(mesh.axis_sizes)
    return jax.set_mesh(Mesh(cpu, mesh.axis_names, axis_types=mesh.axis_types))
