"""Export a Flax model into a bundle that is served without Flax.

    from export import export_model
    export_model(model, params, inputs=["image:float32[_,28,28,1]"], out="bundle/")

The command line does the same: `python -m export --help`. What needs Flax is imported
when first used, so that a spec can be read, and help given, at once.
"""

import importlib
from typing import TYPE_CHECKING

from export.errors import CheckpointError, ExportError, ParamsError, RowMixing, VerificationError
from export.fields import parse_input
from export.preprocess import Text
from export.spec import ExportSpec
from runtime.signature import TensorSpec

if TYPE_CHECKING:
    from export.exporting import export_model
    from export.report import Report

_HOME = {"export_model": "export.exporting", "Report": "export.report"}

__all__ = [
    "CheckpointError",
    "ExportError",
    "ExportSpec",
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
