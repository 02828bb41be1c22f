"""Which devices a traced model names: a program is for one, whichever that is.

Sharding constraints, `shard_map`, `pmap`, jit's own shardings and `device_put` say where
something is computed, and so do arrays that the model's code holds.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, Sharding

from export.constants import all_constants
from export.errors import SeveralDevices
from export.jaxprs import equations

# How users write what JAX calls otherwise.
_WRITTEN = {
    "sharding_constraint": "jax.lax.with_sharding_constraint",
    "shard_map": "jax.shard_map or jax.pmap",
    "jit": "jax.jit with shardings",
    "pjit": "jax.jit with shardings",
    "device_put": "jax.device_put",
    "reshard": "jax.sharding.reshard",
    "mesh_cast": "jax.sharding.reshard",
}
_LEAVE_OUT = "leave it out for inference, or give it a mesh of one device"
_ADVICE = {
    "shard_map": "export a function that computes the same on one device",
    "": "pass it through jax.device_get first",
}

# What was in force while an equation was traced; the model itself has named nothing with it.
_CONTEXT = ("ctx_mesh", "context_mesh")


def refuse_several_devices(jaxpr: Any) -> None:
    """Raise SeveralDevices for anything in a model that is on more than one device."""
    for primitive, place in _places(jaxpr):
        count = _count(place)
        if count > 1:
            what = _WRITTEN.get(primitive, primitive) or "an array of the model's code"
            mesh = place.mesh if isinstance(place, NamedSharding) else place
            axes = getattr(mesh, "shape", {})
            shown = ", ".join(f"{n}={size}" for n, size in axes.items() if n[:1] != "_")
            raise SeveralDevices(
                f"model: expected a computation on 1 device, got {what} over {count} devices"
                f"{f' (mesh {shown})' if shown else ''}; {_ADVICE.get(primitive, _LEAVE_OUT)}"
            )


def named_device(jaxpr: Any) -> jax.Device | None:
    """Return the only device that a model names, None where it names none or several."""
    found = {device for _, place in _places(jaxpr) for device in _devices(place)}
    return found.pop() if len(found) == 1 else None


def _places(jaxpr: Any) -> Iterator[tuple[str, Any]]:
    """Yield each sharding, mesh or device in a jaxpr with its primitive; none for a constant."""
    for constant in all_constants(jaxpr):
        if isinstance(constant, jax.Array) and constant.committed:
            yield "", constant.sharding
    for equation in equations(jaxpr.jaxpr):
        for name, value in equation.params.items():
            for item in value if isinstance(value, Sequence) else (value,):
                if name not in _CONTEXT and isinstance(
                    item, Sharding | Mesh | AbstractMesh | jax.Device
                ):
                    yield equation.primitive.name, item


def _count(place: Any) -> int:
    if isinstance(place, jax.Device):
        return 1
    return int(place.num_devices if isinstance(place, Sharding) else place.size)


def _devices(place: Any) -> set[jax.Device]:
    if isinstance(place, jax.Device):
        return {place}
    if isinstance(place, Mesh):
        return set(place.devices.flat)
    if isinstance(place, Sharding) and not isinstance(getattr(place, "mesh", None), AbstractMesh):
        return set(place.device_set)
    return set()
