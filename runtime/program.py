"""One bucket's program: bytes in, something callable out. The only caller of jax.export.

Whatever of JAX's surface the runtime needs is here, so that a JAX release that changes
it breaks this file alone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from runtime.entries import ProgramEntry
from runtime.errors import DeviceUnavailable, ExecutionError, IncompatibleProgram
from runtime.manifest import Manifest
from runtime.tensors import Array, numpy_dtype

Device = Any


def find_device(wanted: object | None) -> Device:
    """Give the device to serve from.

    Args:
      wanted: None for JAX's default device, a platform ("cpu", "cuda"), a platform and
        an index ("cuda:1"), or a jax device.

    Raises:
      DeviceUnavailable: it is not there. There is no fall-back to another platform.
    """
    if isinstance(wanted, jax.Device):
        return wanted
    if wanted is not None and not isinstance(wanted, str):
        raise DeviceUnavailable(
            "device: expected None, a name such as 'cpu' or 'cuda:1', or a jax device, got "
            f"{type(wanted).__name__}"
        )
    platform, _, index = (wanted or "").partition(":")
    reason = "no such index"
    try:
        devices = jax.local_devices(backend=platform or None)
        if (index or "0").isdecimal() and int(index or 0) < len(devices):
            return devices[int(index or 0)]
    except RuntimeError as error:
        reason = _first_line(error)
    raise DeviceUnavailable(
        f"device {wanted or 'default'!r}: expected one of {_available()}, got none ({reason})"
    )


def platform_of(device: Device) -> str:
    """Name a device's platform as jax.export does: cpu, cuda, rocm, tpu."""
    if device.platform == "gpu":
        return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return str(device.platform)


def device_kind(device: Device) -> str:
    """Name a device's model, such as `cpu` or `NVIDIA H200`."""
    return str(device.device_kind)


def jax_version() -> str:
    """Name the jax that runs."""
    return str(jax.__version__)


def _available() -> list[str]:
    try:
        return [f"{platform_of(d)}:{d.id}" for d in jax.local_devices()]
    except RuntimeError:
        return []


def wait_in_place() -> None:
    """Have CPU programs run on the thread that calls them, for all of this process.

    JAX hands them to threads of its own by default, so that a caller can go on meanwhile. One
    that waits for the outputs at once only pays for the way there and back: 70 to 110 µs a
    call were seen. To be called before any device is used.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def count_compiles() -> Callable[[], int]:
    """Count the programs that XLA compiles in this process from now on.

    JAX tells of each compilation, of those too that its cache on disk answers.

    Returns:
      Gives the number so far.
    """
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: len(compiled)


def memory_in_use(device: Device) -> int | None:
    """Give the bytes in use on a device, None where it does not say."""
    statistics = device.memory_stats()
    return None if statistics is None else int(statistics["bytes_in_use"])


def live_arrays(platform: str) -> int:
    """Count the arrays on a platform's devices that this process still holds."""
    return len(jax.live_arrays(platform))


def wide_types(enabled: bool) -> contextlib.AbstractContextManager[Any]:
    """Switch 64-bit types on for lowering or calling, in this thread only."""
    return jax.enable_x64(True) if enabled else contextlib.nullcontext()


def put(arrays: Sequence[Array], device: Device, *, x64: bool) -> tuple[Any, ...]:
    """Put arrays on the device; on CPU an aligned one is used where it lies."""
    with wide_types(x64):
        placed = tuple(jax.device_put(list(arrays), device))
        jax.block_until_ready(placed)
    return placed


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A compiled program for one bucket on one device. Thread-safe.

    Attributes:
      batch: rows it takes.
      axes: size of each bucketed axis.
    """

    batch: int
    axes: Mapping[str, int]
    _compiled: Any
    _x64: bool

    def call(self, params: tuple[Any, ...], inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run the program and bring its outputs to the host.

        Args:
          params: device arrays, in the manifest's order.
          inputs: host arrays of exactly the program's shapes, in the signature's order.

        Returns:
          Host arrays in the signature's order. They can be read-only.

        Raises:
          ExecutionError: the device failed.
        """
        try:
            return tuple(np.asarray(output) for output in self.launch(params, inputs))
        except (jax.errors.JaxRuntimeError, RuntimeError) as error:
            raise ExecutionError(f"program b{self.batch}: {error}") from error

    def launch(self, params: tuple[Any, ...], inputs: tuple[Array, ...]) -> tuple[Any, ...]:
        """Start the program; the device arrays it returns may not be computed yet."""
        if not self._x64:
            return self._compiled(params, inputs)  # type: ignore[no-any-return]
        with jax.enable_x64(True):
            return self._compiled(params, inputs)  # type: ignore[no-any-return]

    def costs(self) -> dict[str, float]:
        """Say what XLA says of the program: flops, bytes_accessed, temp_bytes, …; may lack keys."""
        found: dict[str, float] = {}
        analysis = self._compiled.cost_analysis() or {}
        for key, name in (("flops", "flops"), ("bytes accessed", "bytes_accessed")):
            if key in analysis:
                found[name] = float(analysis[key])
        memory = self._compiled.memory_analysis()
        if memory is not None:
            found["temp_bytes"] = float(memory.temp_size_in_bytes)
            found["argument_bytes"] = float(memory.argument_size_in_bytes)
            found["output_bytes"] = float(memory.output_size_in_bytes)
        return found


def compile_program(
    data: bytes, entry: ProgramEntry, manifest: Manifest, device: Device
) -> Program:
    """Deserialize an exported program and compile it for a device, ahead of time.

    Args:
      data: the bytes of `entry.exported`, digest checked.
      entry: the program's entry in the manifest.
      manifest: the manifest, for its signature and params.
      device: where it will run.

    Raises:
      IncompatibleProgram: jax refuses it: outside its compatibility window, for
        another platform, or with custom calls it does not know.
    """
    where = f"{entry.exported.path}: exported by jax {manifest.exporter.get('jax', '?')}"
    sharding = jax.sharding.SingleDeviceSharding(device)

    def spec(dtype: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, numpy_dtype(dtype), sharding=sharding)

    with wide_types(manifest.x64):
        params = tuple(spec(a.dtype, a.shape) for a in manifest.params.arguments)
        inputs = tuple(
            spec(s.dtype, s.concrete(entry.batch, entry.axes)) for s in manifest.signature.inputs
        )
        try:
            exported = export.deserialize(bytearray(data))
            _expect_arguments(exported, params, inputs)
            _expect_outputs(exported, entry, manifest)
            compiled = jax.jit(exported.call).lower(params, inputs).compile()
        except Exception as error:
            raise IncompatibleProgram(
                f"{where}, this is jax {jax.__version__} on {platform_of(device)}: "
                f"{_first_line(error)}; re-export the model with a jax near this one"
            ) from error
    return Program(entry.batch, entry.axes, compiled, manifest.x64)


def _expect_arguments(
    exported: export.Exported, params: Sequence[Any], inputs: Sequence[Any]
) -> None:
    expected = [(tuple(s.shape), s.dtype) for s in (*params, *inputs)]
    got = [(tuple(a.shape), a.dtype) for a in exported.in_avals]
    if expected != got:
        raise ValueError("its arguments are not those the manifest describes")


def _expect_outputs(exported: export.Exported, entry: ProgramEntry, manifest: Manifest) -> None:
    expected = [
        (s.concrete(entry.batch, entry.axes), numpy_dtype(s.dtype))
        for s in manifest.signature.outputs
    ]
    got = [(tuple(a.shape), a.dtype) for a in exported.out_avals]
    if expected != got:
        raise ValueError("its outputs are not those the manifest describes")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
