"""The child of `probe`: opens a bundle, runs each of its programs, and may crash."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.bundle import Bundle
from runtime.device import find_device
from runtime.executable_cache import ExecutableCache
from runtime.golden_check import golden_rows
from runtime.loading import assemble, compile_all, program_threads
from runtime.manifest import Manifest
from runtime.probe import OPENED, REFUSED
from runtime.program import use_sync_dispatch


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
    with program_threads(target) as pool:
        programs = compile_all(bundle, target, progress=lambda _: None, each=pool.map)
    model = assemble(bundle, target, programs)
    for sizes, group in model.groups.items():
        for batch, program in group.programs.items():
            model.run(program, golden_rows(model, sizes, batch))
            if kept is not None:
                program.keep(kept)
