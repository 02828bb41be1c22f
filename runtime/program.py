"""One bucket's program: compiled, or loaded as it was compiled before, and called.

Whatever of JAX's surface serving needs is here or, of devices, in `device`. What of it JAX does not
promise is listed here, in `program_forms`, `executables` and `stablehlo`, so that a release that
changes it breaks these:

* the name of the event that each compilation is reported by
* `NPROC`, which XLA's CPU client takes the size of its thread pools from
* `jax.extend.backend.clear_backends`, after which a CPU client of another size can be made
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.backend
import numpy as np

from runtime.device import Device, device_kind, platform_of
from runtime.entries import File, ProgramEntry
from runtime.errors import (
    BundleError,
    ExecutionError,
    IncompatibleProgram,
    first_line,
)
from runtime.executable_cache import Executable, ExecutableCache, ExecutableSource
from runtime.executables import (
    NotSerializable,
    deserialize,
    platform_version,
    serialize,
)
from runtime.jax_settings import lifted, lifted_for_call
from runtime.manifest import Manifest
from runtime.program_forms import (
    Arguments,
    Unreadable,
    expect_signature,
    jaxlib_version,
    read_program,
)
from runtime.tensors import Array

# Flags of XLA that were set here: keys of executables leave them out, as a server does not set them.
_OWN_FLAGS: list[str] = []
# Numbers of threads that were set here, and not by the user's NPROC.
_OWN_THREADS: list[int] = []


def use_sync_dispatch() -> None:
    """Have CPU programs run on the thread that calls them, for all of this process.

    JAX hands them to threads of its own by default, so that a caller can go on meanwhile. One
    that waits for the outputs at once only pays for the way there and back: 70 to 110 µs a
    call were seen. To be called before any device is used.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def set_cpu_threads(threads: int) -> None:
    """Have the CPU's programs compute with so many threads, where NPROC does not say how many.

    XLA takes as many as the machine has cores otherwise. To be called before any device is used,
    and while no other thread may read the environment.
    """
    if "NPROC" not in os.environ:
        _OWN_THREADS.append(threads)
        os.environ["NPROC"] = str(threads)


def change_cpu_threads(threads: int) -> None:
    """Have the CPU's programs compute with another number of threads, where NPROC was not the user's.

    XLA makes its threads with its devices, so the devices are made anew: programs and params that were
    on them have to be loaded again, and nothing may use them any more. NPROC is in the environment
    already, and replacing a variable's value leaves readers on other threads the old one.
    """
    if _OWN_THREADS and _OWN_THREADS[-1] != threads:
        jax.extend.backend.clear_backends()
        gc.collect()  # what refers to the devices keeps their threads and memory
        _OWN_THREADS.append(threads)
        os.environ["NPROC"] = str(threads)


def may_change_cpu_threads() -> bool:
    """Whether the number of threads was set here, and is not the user's NPROC."""
    return bool(_OWN_THREADS)


def limit_instructions(instructions: str) -> None:
    """Have the CPU's programs use no more than a set of instructions, such as AVX2.

    What is compiled then runs wherever those are, and is kept as what is compiled without the
    limit. To be called before any device is used.
    """
    flag = f"--xla_cpu_max_isa={instructions}"
    _OWN_FLAGS.append(flag)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def cpu_threads() -> int:
    """Return the number of threads that the CPU's programs are compiled to compute with."""
    threads = os.environ.get("NPROC", "")
    return int(threads) if threads.isdecimal() and int(threads) else os.cpu_count() or 1


def count_compiles() -> Callable[[], int]:
    """Count the programs that XLA compiles in this process from now on.

    JAX reports each compilation, those too that its cache on disk answers.

    Returns:
      A function that returns the number so far.
    """
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: len(compiled)


def put(arrays: Sequence[Array], device: Device, *, x64: bool) -> tuple[Any, ...]:
    """Put arrays on the device; on CPU an aligned one is used in place.

    Raises:
      ExecutionError: the device failed, as one without the memory for them does.
    """
    with lifted_for_call(x64=x64):
        try:
            placed = tuple(jax.device_put(list(arrays), device))
            jax.block_until_ready(placed)
        except jax.errors.JaxRuntimeError as error:
            raise ExecutionError(f"params: {first_line(error)}") from error
    return placed


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A compiled program for one bucket on one device. Thread-safe.

    Attributes:
      batch: rows it takes.
      axes: size of each bucketed axis.
      fallback: why it was made from `.stablehlo`; empty if it was not.
      data_dependent: whether how long it runs depends on its inputs; see `stablehlo`.
      key: what it was compiled from and for; see `executable_cache`.
      source: what it was loaded from; None if it was compiled here.
      threads: that it computes with, where the platform is a CPU; else 0.
    """

    batch: int
    axes: Mapping[str, int]
    _compiled: Any
    _x64: bool
    fallback: str = ""
    data_dependent: bool = False
    key: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: ExecutableSource | None = None
    threads: int = 0

    def call(self, params: tuple[Any, ...], inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run the program and bring its outputs to the host; see `dispatch` and `fetch`."""
        return self.fetch(self.dispatch(params, inputs))

    def dispatch(self, params: tuple[Any, ...], inputs: tuple[Array, ...]) -> Sequence[Any]:
        """Start the program, and return without waiting for it where the device allows that.

        Args:
          params: device arrays, in the manifest's order.
          inputs: host arrays of exactly the program's shapes, in the signature's order; not to be
            changed before the outputs were fetched.

        Returns:
          Outputs on the device, in the signature's order, for `fetch`.

        Raises:
          ExecutionError: the device failed.
        """
        try:
            with lifted_for_call(x64=self._x64):
                outputs: Sequence[Any] = self._compiled(params, inputs)
        except (jax.errors.JaxRuntimeError, RuntimeError) as error:
            raise self._failed(error) from error
        return outputs

    def fetch(self, outputs: Sequence[Any]) -> tuple[Array, ...]:
        """Wait for outputs, and bring them to the host.

        Args:
          outputs: of `dispatch`.

        Returns:
          Host arrays in the signature's order. They can be read-only.

        Raises:
          ExecutionError: the device failed.
        """
        try:
            with lifted_for_call(x64=self._x64):
                return tuple(np.asarray(output) for output in outputs)
        except (jax.errors.JaxRuntimeError, RuntimeError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ExecutionError:
        return ExecutionError(f"program b{self.batch}: {error}")

    def keep(self, cache: ExecutableCache) -> None:
        """Keep the program as bytes; one that has none is compiled at each start."""
        if self.source is cache:
            return
        with contextlib.suppress(NotSerializable):
            cache.keep(self.key, self.executable())

    def executable(self) -> Executable:
        """Return the program as bytes: those that it was loaded from, while their source has them.

        XLA serializes what it compiled itself. Of a CPU's program that was loaded, the bytes would lack the code:
        they load, and the first run fails.

        Raises:
          NotSerializable: it has none.
        """
        if self.source is not None:
            found = self.source.executable(self.key, self.threads)
            if found is None:
                raise NotSerializable("what it was loaded from is gone")
            return found
        data = serialize(self._compiled)
        return Executable(data, self.threads, self.data_dependent, self.fallback)

    def costs(self) -> dict[str, float]:
        """Return what XLA says of the program: flops, bytes_accessed, temp_bytes, …; may lack keys."""
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
    read: Callable[[File], bytes],
    entry: ProgramEntry,
    manifest: Manifest,
    device: Device,
    caches: Sequence[ExecutableSource] = (),
    compiling: Callable[[], object] = lambda: None,
) -> Program:
    """Load a program that was compiled before, or deserialize and compile it, ahead of time.

    Its `.exported` form is taken, or its `.stablehlo` where this jax no longer, or not yet,
    reads the other; the program says so.

    Args:
      read: returns the bytes of a file, digest checked.
      entry: the program's entry in the manifest.
      manifest: the manifest, for its signature and params.
      device: where it will run.
      caches: of programs that were compiled before; looked at in this order.
      compiling: called before it is compiled, where it is.

    Raises:
      IncompatibleProgram: jax refuses it: outside its compatibility window, for
        another platform, or with custom calls it does not know.
      IntegrityError: it makes other custom calls than the manifest lists.
    """
    threads = cpu_threads() if platform_of(device) == "cpu" else 0
    with lifted(x64=manifest.x64):
        arguments = Arguments.of(entry, manifest, device)
        key = _key(entry, manifest, device, arguments)
        for cache in caches:
            found = cache.executable(key, threads)
            if found is None:
                continue
            with contextlib.suppress(NotSerializable):
                compiled = deserialize(
                    found.data,
                    (arguments.params, arguments.inputs),
                    arguments.outputs,
                    device,
                    entry.custom_calls,
                )
                return Program(
                    entry.batch,
                    entry.axes,
                    compiled,
                    manifest.x64,
                    found.fallback,
                    found.data_dependent,
                    key,
                    cache,
                    found.threads,
                )
        compiling()
        compiled, data_dependent, fallback = _compiled(read, entry, manifest, device, arguments)
    return Program(
        entry.batch,
        entry.axes,
        compiled,
        manifest.x64,
        fallback,
        data_dependent,
        key,
        threads=threads,
    )


def _compiled(
    read: Callable[[File], bytes],
    entry: ProgramEntry,
    manifest: Manifest,
    device: Device,
    arguments: Arguments,
) -> tuple[Any, bool, str]:
    """Return a compiled program, whether its time depends on its inputs, and its fallback."""
    try:
        exported, found, fallback = read_program(read, entry, manifest)
        expect_signature(exported, arguments)
        # Arguments that are not used stay, so that an executable takes what the manifest lists.
        jitted = jax.jit(exported.call, keep_unused=True)
        compiled = jitted.lower(arguments.params, arguments.inputs).compile()
    except BundleError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, Unreadable) else first_line(error)
        raise IncompatibleProgram(
            f"{entry.exported.path}: exported by jax {manifest.exporter.get('jax', '?')}, this "
            f"is jax {jax.__version__} on {platform_of(device)}: {reason}; "
            "re-export the model with a jax near this one"
        ) from error
    return compiled, found.data_dependent, fallback


def _key(
    entry: ProgramEntry, manifest: Manifest, device: Device, arguments: Arguments
) -> dict[str, Any]:
    """Return everything that a compiled program depends on.

    XLA would ignore most of it: what was compiled with other flags, or by another version, runs
    as it was compiled.
    """
    specs = (arguments.params, arguments.inputs, arguments.outputs)
    shapes = [[f"{spec.dtype.name}{list(spec.shape)}" for spec in part] for part in specs]
    return {
        **environment(device),
        "program": entry.exported.sha256,
        "stablehlo": entry.stablehlo.sha256,
        "arguments": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        "custom_calls": list(entry.custom_calls),
        "x64": manifest.x64,
    }


def environment(device: Device) -> dict[str, Any]:
    """Return what compiles here, and for what: the part of a key that no program is needed for."""
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib_version(),
        "platform": platform_of(device),
        "platform_version": platform_version(device),
        "device_kind": device_kind(device),
        "xla_flags": [f for f in os.environ.get("XLA_FLAGS", "").split() if f not in _OWN_FLAGS],
    }
