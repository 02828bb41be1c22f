"""Serve a bundle over HTTP. `python -m server --help`."""

import importlib
import sys
from pathlib import Path


def _import_runtime() -> None:
    """Import the runtime beside this package, also where the user's folder has a `runtime.py`.

    Raises:
      ImportError: that file was imported before.
    """
    ours = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(ours))
    try:
        runtime = importlib.import_module("runtime")
    finally:
        sys.path.remove(str(ours))
    found = getattr(runtime, "__file__", None) or "another of that name"
    if Path(found).resolve() != ours / "runtime" / "__init__.py":
        raise ImportError(
            f"package 'runtime': expected hloserve's own, {ours / 'runtime'}, got {found}; rename "
            "that file, which was imported before"
        )


_import_runtime()
