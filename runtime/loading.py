"""From a bundle to a model: every program compiled for one device, and the params put there."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, open_bundle
from runtime.claims import expect_memory
from runtime.device import (
    Device,
    find_device,
    free_memory,
    host_memory_free,
    named,
    params_memory,
    platform_of,
)
from runtime.entries import ProgramEntry
from runtime.errors import IncompatibleProgram, IntegrityError
from runtime.executable_cache import ExecutableCache, ExecutableSource
from runtime.model import Model
from runtime.preprocessing.libraries import library_versions
from runtime.preprocessing.sandbox import try_stages
from runtime.probe import probing
from runtime.program import Program, compile_program, cpu_threads, put
from runtime.tensors import Array

Progress = Callable[[str], None]

_MAX_THREADS = 4


def load(
    bundle: str | os.PathLike[str] | Bundle,
    device: object | None = None,
    *,
    progress: Progress | None = None,
    require_digest: str | None = None,
    isolated: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a bundle: compile every program for one device and put the params there.

    A damaged bundle is an error, but one that was made to crash a process does so, unless it
    is `isolated`, or kept out by its digest.

    Args:
      bundle: the directory, or a bundle that is already open.
      device: None for JAX's default, "cpu", "cuda", "cuda:1", or a jax device.
      progress: called with a short sentence before each slow step.
      require_digest: `sha256:HEX`, what its manifest.json has to be; None for any.
      isolated: open it in a process of its own first. A tokenizer is tried in one all the same,
        unless the digest is required.
      cache_dir: keeps what is compiled, and is looked at first; see `executable_cache`.

    Returns:
      A model; nothing is compiled after this.

    Raises:
      BundleError: it cannot be served here; the subclass and the message say why.
    """
    progress = progress or (lambda _: None)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    opened.require(require_digest)
    cache = None if cache_dir is None else ExecutableCache(Path(cache_dir), progress)
    with contextlib.ExitStack() as stack:
        caches = [] if cache is None else [cache]
        if isolated:
            compiled = stack.enter_context(
                probing(opened, named(device), cache=cache, progress=progress)
            )
            caches += [] if compiled is None else [compiled]
        elif require_digest is None:
            try_stages(opened)
        target = find_device(device)
        with program_threads(target) as pool:
            programs = compile_all(opened, target, progress=progress, each=pool.map, caches=caches)
    progress("loading params")
    model = assemble(opened, target, programs)
    progress("warming up")
    model.measure()
    if cache is not None:
        for program in programs:
            program.keep(cache)
    release_memory()
    return model


def compile_all(
    bundle: Bundle,
    target: Device,
    *,
    progress: Progress,
    each: Callable[..., Any] = map,
    caches: Sequence[ExecutableSource] = (),
) -> tuple[Program, ...]:
    """Compile every program of a bundle for one device; nothing is run yet.

    Args:
      bundle: opened.
      target: the device.
      progress: called with a sentence before each program.
      each: compiles them: `map`, or that of a pool of threads.
      caches: of programs that were compiled before; looked at in this order.

    Raises:
      BundleError: as for `load`.
    """
    manifest = bundle.manifest
    platform = platform_of(target)
    if platform not in manifest.platforms:
        raise IncompatibleProgram(
            f"bundle {bundle.path}: needs platform {' or '.join(manifest.platforms)}, this "
            f"device is {platform}; export with --platforms {platform}, or name another device"
        )
    library_versions(manifest.preprocess)
    expect_room(bundle, target)

    # Programs first: compiling needs memory of its own, and needs no params.
    count = len(manifest.programs)

    def compiled(numbered: tuple[int, ProgramEntry]) -> Program:
        i, entry = numbered

        def begin() -> None:
            progress(f"compiling {entry.exported.path} ({i}/{count})")

        return compile_program(bundle.read, entry, manifest, target, caches, begin)

    programs = []
    numbered = enumerate(manifest.programs, 1)
    for entry, program in zip(manifest.programs, each(compiled, numbered), strict=True):
        programs.append(program)
        if program.fallback:
            progress(
                f"{entry.exported.path} is not read by this jax ({program.fallback}); took "
                f"{entry.stablehlo.path}"
            )
    loaded = sum(program.source is not None for program in programs)
    if loaded:
        progress(f"loaded {loaded} of {count} programs from the executable cache")
    if loaded < count:
        release_memory()
    return tuple(programs)


def expect_room(bundle: Bundle, target: Device) -> None:
    """Refuse a bundle that a device, or this machine, has too little memory for, by its manifest alone.

    Raises:
      DoesNotFit: names what does not, and the bytes.
    """
    expect_memory(
        bundle.manifest,
        params=params_memory(target),
        device=free_memory(target),
        host=host_memory_free(),
    )


def assemble(bundle: Bundle, target: Device, programs: tuple[Program, ...]) -> Model:
    """Put the params beside compiled programs. The model is not measured yet.

    Raises:
      BundleError: a file is not what the manifest says, or a program does not fit.
      ExecutionError: the device failed.
    """
    params = put(_arguments(bundle), target, x64=bundle.manifest.x64)
    model = Model(bundle, target, programs, params)
    model.check_memory()
    return model


def program_threads(target: Device) -> ThreadPoolExecutor:
    """Return the threads that programs are compiled, loaded and run on before any request.

    LLVM and XLA use several cores by themselves; a second thread keeps them busy in between.
    """
    several = platform_of(target) == "cpu"
    return ThreadPoolExecutor(min(_MAX_THREADS, cpu_threads()) if several else 1)


def release_memory() -> None:
    """Hand memory that was freed back to the system, where the C library can.

    Compiling leaves much behind that malloc would keep; see docs/performance.md.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _arguments(bundle: Bundle) -> list[Array]:
    """Read the params in calling order and hold each against the manifest."""
    found: dict[str, dict[str, Array]] = {
        f.path: bundle.map(f) for f in bundle.manifest.params.files
    }
    arrays = []
    for argument in bundle.manifest.params.arguments:
        array = found[argument.file].pop(argument.name, None)
        if array is None:
            raise IntegrityError(f"{argument.file}: expected a tensor {argument.name!r}, got none")
        if (array.dtype.name, array.shape) != (argument.dtype, argument.shape):
            raise IntegrityError(
                f"{argument.file}: {argument.name!r}: expected {argument.dtype}"
                f"{list(argument.shape)}, got {array.dtype.name}{list(array.shape)}"
            )
        arrays.append(array)
    extra = sorted(name for tensors in found.values() for name in tensors)
    if extra:
        raise IntegrityError(f"params: expected no tensor {extra[0]!r}, got one")
    return arrays
