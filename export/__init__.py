"""Export a Flax model into a bundle that is served without Flax.

    from export import export_model
    export_model(model, params, inputs=["image:float32[_,28,28,1]"], out="bundle/")

The command line does the same: `python -m export --help`. What needs Flax is imported
when first used, so that a spec can be read, and help given, at once.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING


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

from export.errors import (  # noqa: E402 (these import the runtime)
    CheckpointError,
    ExportError,
    ParamsError,
    RowMixing,
    VerificationError,
)
from export.image_input import Image  # noqa: E402
from export.inputs import parse_input  # noqa: E402
from export.preprocess import Text  # noqa: E402
from export.spec import ExportSpec  # noqa: E402
from runtime.signature import TensorSpec  # noqa: E402

if TYPE_CHECKING:
    from export.exporting import export_model
    from export.report import Report

_HOME = {"export_model": "export.exporting", "Report": "export.report"}

__all__ = [
    "CheckpointError",
    "ExportError",
    "ExportSpec",
    "Image",
    "ParamsError",
    "Report",
    "RowMixing",
    "TensorSpec",
    "Text",
    "VerificationError",
    "export_model",
    "parse_input",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
