"""Exports models that name devices, on eight of them, and prints what became of each as JSON.

Run as a process of its own: how many devices a CPU is taken for is settled when JAX starts.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from export import ExportError, export_model
from runtime import load

DATA = PartitionSpec("data")
W = np.ones((4, 3), np.float32)
PARAMS = {"w": W}
ALONE = contextlib.nullcontext


def mesh(devices, kind=AxisType.Auto):
    """Return a mesh with one axis, `data`."""
    return Mesh(np.array(devices), ("data",), axis_types=(kind,))


def constrained(sharding):
    """Return a model that constrains its input."""
    return lambda params, x: jax.lax.with_sharding_constraint(x, sharding) @ params["w"]


def models(devices):
    """Yield models that name these devices: a name, the model, its params, what is in force."""
    over = NamedSharding(mesh(devices), DATA)
    array = jax.device_put(np.ones((8, 3), np.float32), over)

    def looped(params, x):
        def step(carry, _):
            return jax.lax.with_sharding_constraint(carry, over) * 1.0, None

        return jax.lax.scan(step, x, None, length=2)[0] @ params["w"]

    def mapped(params, x):
        rows = jnp.broadcast_to(x[None], (len(devices), *x.shape))
        return jax.pmap(lambda a: a * 1.0, devices=devices)(rows)[0] @ params["w"]

    def jitted(params, x):
        return jax.jit(lambda a: a * 1.0, in_shardings=over, out_shardings=over)(x) @ params["w"]

    def shard_mapped(params, x, **options):
        return (
            jax.shard_map(lambda a: a * 1.0, in_specs=DATA, out_specs=DATA, **options)(x)
            @ params["w"]
        )

    yield "constraint", constrained(over), PARAMS, ALONE
    yield "constraint in a loop", looped, PARAMS, ALONE
    yield "shard_map", lambda p, x: shard_mapped(p, x, mesh=over.mesh), PARAMS, ALONE
    yield "pmap", mapped, PARAMS, ALONE
    yield "jit", jitted, PARAMS, ALONE
    yield "device_put", lambda p, x: jax.device_put(x, over) @ p["w"], PARAMS, ALONE
    yield "array", lambda p, x: x @ p["w"] + array[0, 0] - 1.0, PARAMS, ALONE
    yield "legacy mesh", constrained(DATA), PARAMS, lambda: over.mesh
    yield "mesh", constrained(DATA), PARAMS, lambda: jax.set_mesh(over.mesh)
    yield "shard_map, mesh", shard_mapped, PARAMS, lambda: jax.set_mesh(over.mesh)
    yield (
        "reshard, explicit mesh",
        lambda p, x: jax.sharding.reshard(x, DATA) @ p["w"],
        PARAMS,
        lambda: jax.set_mesh(mesh(devices, AxisType.Explicit)),
    )


class Partitioned(linen.Module):
    """Names each axis, for sharded models."""

    @linen.compact
    def __call__(self, x):
        """Sum each row, three times."""
        x = linen.with_logical_constraint(x, ("batch", None), rules=(("batch", "data"),))
        ones = linen.with_partitioning(linen.initializers.ones, (None, "data"))
        return linen.Dense(3, kernel_init=ones)(x)


def unaffected(devices):
    """Yield models that name none of these devices, whatever is in force."""
    variables = linen.meta.unbox(Partitioned().init(jax.random.key(0), W.T))
    sharded = jax.device_put(np.ones((8, 3), np.float32), NamedSharding(mesh(devices), DATA))
    in_force = {
        "mesh": lambda: jax.set_mesh(mesh(devices)),
        "explicit mesh": lambda: jax.set_mesh(mesh(devices, AxisType.Explicit)),
        "legacy mesh": lambda: mesh(devices),
    }
    for name, context in in_force.items():
        yield f"plain, {name}", lambda p, x: x @ p["w"], PARAMS, context
        yield f"linen, {name}", Partitioned(), variables, context
    yield "sharded params", lambda p, x: x @ p["w"][:4], {"w": sharded}, ALONE


def outcome(model, params, context, buckets):
    """Export a model; return the refusal, or the first row that it answers."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        try:
            with context():
                export_model(
                    model,
                    params,
                    inputs=["x:float32[_,4]"],
                    buckets=buckets,
                    platforms=("cpu",),
                    unverified=True,
                    dry_run=buckets != (1, 2),
                    out=out,
                )
                if buckets != (1, 2):
                    return [4.0] * 3
                model = load(out)
                return next(iter(model.predict({"x": np.ones((3, 4), np.float32)}).values()))[
                    0
                ].tolist()
        except ExportError as error:
            return str(error)


def main():
    """Print {group: {model: outcome}}."""
    from export import verification

    # Devices are what is looked at here; that fresh processes verify is shown elsewhere.
    verification.verify = lambda *_: verification.Verified()
    eight = jax.devices()
    groups = {
        "eight": (models(eight), (8, 16)),
        "eight, few rows": (models(eight), (1, 2)),
        "unaffected": (unaffected(eight), (1, 2)),
        "one": (models(eight[:1]), (1, 2)),
        "another one": (models(eight[3:4]), (1, 2)),
    }
    json.dump(
        {
            group: {name: outcome(*rest, buckets) for name, *rest in members}
            for group, (members, buckets) in groups.items()
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
