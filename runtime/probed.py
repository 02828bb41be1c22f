"""The child of `probe`: opens a bundle, runs each of its programs, and may crash."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.bundle import Bundle
from runtime.device import find_device
from runtime.loading import assemble, compile_all
from runtime.manifest import Manifest
from runtime.probe import OPENED, REFUSED
from runtime.program import shared_compilation_cache, use_sync_dispatch
from runtime.verify import golden_rows


def main(argv: Sequence[str]) -> None:
    """Open the bundle whose manifest comes in; ends the process."""
    path, device, compiled = argv
    use_sync_dispatch()
    bundle = Bundle(Path(path), Manifest.from_bytes(sys.stdin.buffer.read()), digest="")
    try:
        with shared_compilation_cache(compiled) if compiled else contextlib.nullcontext():
            run_each(bundle, device)
    except Exception:  # noqa: BLE001 (what Python can catch is for the other process to tell)
        sys.exit(REFUSED)
    sys.exit(OPENED)


def run_each(bundle: Bundle, device: str) -> None:
    """Run each program once, on rows of a golden; whether it answers rightly is not asked here.

    Raises:
      BundleError: it cannot be loaded here.
      ExecutionError: the device failed.
    """
    target = find_device(device or None)
    model = assemble(bundle, target, compile_all(bundle, target, progress=lambda _: None))
    for group in model.groups.values():
        for batch, program in group.programs.items():
            model.run(program, golden_rows(model, group, batch))
