"""The child of `probe`: opens a bundle, answers its goldens, and may crash."""

import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.bundle import Bundle
from runtime.errors import BundleError, ExecutionError
from runtime.guard import be_expendable
from runtime.manifest import Manifest
from runtime.model import load
from runtime.probe import OPENED, REFUSED
from runtime.verify import check_goldens


def main(argv: Sequence[str]) -> None:
    """Open the bundle whose manifest comes in; ends the process."""
    path, device = argv
    be_expendable()
    bundle = Bundle(Path(path), Manifest.from_bytes(sys.stdin.buffer.read()), digest="")
    try:
        check_goldens(load(bundle, device or None))
    except (BundleError, ExecutionError):
        sys.exit(REFUSED)
    sys.exit(OPENED)
