"""The child of `probe`: opens a bundle, runs each of its programs, and may crash."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.bundle import Bundle
from runtime.claims import params_bytes
from runtime.device import find_device, free_memory
from runtime.executable_cache import ExecutableCache
from runtime.golden_check import golden_rows
from runtime.loading import assemble, compile_all, program_threads
from runtime.manifest import Manifest
from runtime.probe import OPENED, REFUSED
from runtime.program import Program, use_sync_dispatch
from runtime.room import check_memory
from runtime.signature import bucket_name


def main(argv: Sequence[str]) -> None:
    """Open the bundle whose manifest is on stdin; ends the process."""
    path, device, compiled = argv
    use_sync_dispatch()
    bundle = Bundle(Path(path), Manifest.from_bytes(sys.stdin.buffer.read()), digest="")
    try:
        run_each(bundle, device, ExecutableCache(Path(compiled)) if compiled else None)
    except Exception:  # noqa: BLE001 (what Python can catch the other process reports)
        sys.exit(REFUSED)
    sys.exit(OPENED)


def run_each(bundle: Bundle, device: str, kept: ExecutableCache | None = None) -> None:
    """Run each program once, on rows of a golden; whether it answers rightly is not asked here.

    Args:
      bundle: opened.
      device: a device's name, or nothing for JAX's default.
      kept: takes each program that survived its run.

    Raises:
      BundleError: it cannot be loaded here.
      ExecutionError: the device failed.
    """
    target = find_device(device or None)
    model = assemble(bundle, target, ())
    axes = [axis.name for axis in model.signature.axes]

    def run(program: Program) -> Program:
        sizes = tuple(program.axes[axis] for axis in axes)
        name = bucket_name(model.signature, sizes, program.batch)
        check_memory({name: program}, params_bytes(bundle.manifest), free_memory(target), 1)
        model.run(program, golden_rows(model, sizes, program.batch))
        if kept is not None:
            program.keep(kept)
        return program

    # Each runs on this thread while others compile, which leaves cores idle now and then.
    with program_threads(target) as pool:
        compile_all(
            bundle,
            target,
            progress=lambda _: None,
            each=lambda compiled, entries: map(run, pool.map(compiled, entries)),
        )
