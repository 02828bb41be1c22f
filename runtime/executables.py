"""Compiled programs as bytes and back: no tracing, no lowering, no compile.

XLA serializes what it has compiled, and takes it back in about 40 ms a program. All of this
is surface that JAX does not promise, so a failure of any kind means: compile instead.

* `jax._src.interpreters.pxla.UnloadedMeshExecutable`, what a `jax.stages.Compiled` calls
* `jax._src.compiler.get_compile_options`, to load on another device than the first
* `jax._src.lax.linalg.initialize_lapack`, which finds the functions that LAPACK's custom calls run
* `jax.stages.ArgInfo` and the arguments of `jax.stages.Compiled`

XLA checks next to nothing of the bytes: those of another jaxlib load silently, and a missing
instruction ends the process at the first run. `executable_cache` decides which bytes are passed here.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax._src import compiler, core
from jax._src.interpreters import pxla
from jax._src.lax import linalg
from jax._src.lib import xla_client  # type: ignore[attr-defined]

from runtime.device import Device


class NotSerializable(Exception):
    """A compiled program that has no bytes, or bytes that are no program here."""


def serialize(compiled: Any) -> bytes:
    """Return a compiled program as bytes.

    Args:
      compiled: a `jax.stages.Compiled` for one device, compiled with `keep_unused`.

    Raises:
      NotSerializable: it closes over arrays, donates, has effects or layouts of its own, or its
        device's runtime has no bytes for it.
    """
    try:
        unloaded = compiled._executable._unloaded_executable  # noqa: SLF001
        plain = (
            not compiled._params.const_args  # noqa: SLF001
            and not unloaded.mut
            and not unloaded.unordered_effects
            and not unloaded.ordered_effects
            and not unloaded.host_callbacks
            and len(unloaded.kept_var_idx) == compiled.in_tree.num_leaves
            and all(layout is None for layout in unloaded.dispatch_in_layouts)
        )
        if plain:
            return bytes(unloaded.xla_executable.serialize())
    except Exception as error:
        raise NotSerializable(f"{type(error).__name__}: {error}") from error
    raise NotSerializable("it closes over arrays, or has effects or layouts of its own")


def deserialize(
    data: bytes,
    inputs: Any,
    outputs: Sequence[jax.ShapeDtypeStruct],
    device: Device,
    custom_calls: Sequence[str] = (),
) -> Any:
    """Return the compiled program that `serialize` made bytes of, on a device.

    Args:
      data: the bytes, of this very jaxlib, platform and kind of device.
      inputs: the positional arguments' trees of shapes and dtypes.
      outputs: shapes and dtypes of the outputs, a flat tuple.
      device: on which it will run; it may be another one of its kind.
      custom_calls: the targets of the custom calls in it.

    Returns:
      A `jax.stages.Compiled`.

    Raises:
      NotSerializable: this jaxlib does not take them.
    """
    try:
        if any(target.startswith("lapack_") for target in custom_calls):
            # Lowering would do it: without, a call is one of a null pointer.
            linalg.initialize_lapack()
        return _loaded(data, inputs, tuple(outputs), device)
    except Exception as error:
        raise NotSerializable(f"{type(error).__name__}: {error}") from error


def _loaded(
    data: bytes, inputs: Any, outputs: tuple[jax.ShapeDtypeStruct, ...], device: Device
) -> Any:
    flat, tree = jax.tree.flatten((inputs, {}))
    in_avals = [core.ShapedArray(spec.shape, spec.dtype) for spec in flat]
    out_avals = [core.ShapedArray(spec.shape, spec.dtype) for spec in outputs]
    sharding = jax.sharding.SingleDeviceSharding(device)
    devices = xla_client.DeviceList((device,))
    options = compiler.get_compile_options(
        num_replicas=1, num_partitions=1, device_assignment=[[device.id]]
    )
    executable = device.client.deserialize_executable(data, devices, options)
    unloaded = pxla.UnloadedMeshExecutable(
        xla_executable=executable,
        device_list=devices,
        backend=device.client,
        input_avals=in_avals,
        input_shardings=[sharding] * len(in_avals),
        output_avals=out_avals,
        output_shardings=[sharding] * len(out_avals),
        committed=True,
        name="jit(call)",
        unordered_effects=[],
        ordered_effects=[],
        keepalive=[],
        host_callbacks=[],
        kept_var_idx=set(range(len(in_avals))),
        mut=None,
        xla_in_layouts=[None] * len(in_avals),
        dispatch_in_layouts=[None] * len(in_avals),
        xla_out_layouts=[None] * len(out_avals),
        all_args_info=None,
        pgle_profiler=None,
    )
    described = jax.tree.unflatten(tree, [jax.stages.ArgInfo(aval, False) for aval in in_avals])
    out_tree = jax.tree.structure(outputs)
    return jax.stages.Compiled(unloaded.load(), [], described, out_tree, no_kwargs=False)


def platform_version(device: Device) -> str:
    """Return what compiles for a device: on GPUs with the versions of the driver and CUDA."""
    return str(device.client.platform_version)
