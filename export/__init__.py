"""Export a Flax model into a bundle that is served without Flax.

    from export import export_model
    export_model(model, params, inputs=["image:float32[_,28,28,1]"], out="bundle/")

The command line does the same: `python -m export --help`.
"""

from export.errors import CheckpointError, ExportError, ParamsError, RowMixing, VerificationError
from export.exporting import export_model
from export.report import Report
from export.spec import ExportSpec, parse_input
from runtime.signature import TensorSpec

__all__ = [
    "CheckpointError",
    "ExportError",
    "ExportSpec",
    "ParamsError",
    "Report",
    "RowMixing",
    "TensorSpec",
    "VerificationError",
    "export_model",
    "parse_input",
]
