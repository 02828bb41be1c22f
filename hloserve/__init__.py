"""Export a Flax model to compiled StableHLO programs; serve them without Flax.

    from hloserve import export_model, load

    report = export_model(model, params, inputs=["image:float32[_,28,28,1]"], out="bundle/")
    answers = load("bundle/").predict({"image": rows})

A facade: what it names is in `export` and `runtime`, and is imported when first used. The command
is `hloserve`, or `python -m hloserve`.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from hloserve.packages import expect_own, import_own

if TYPE_CHECKING:
    from export import (
        CheckpointError,
        ExportError,
        ExportSpec,
        Image,
        ParamsError,
        Report,
        RowMixing,
        TensorSpec,
        Text,
        VerificationError,
        export_model,
    )
    from runtime import (
        Bundle,
        BundleError,
        DeviceUnavailable,
        DoesNotFit,
        ExecutionError,
        GoldenMismatch,
        IncompatibleProgram,
        IntegrityError,
        InvalidInput,
        ManifestError,
        Model,
        SignatureMismatch,
        UnsupportedFormat,
        assert_bundle_matches_goldens,
        load,
        open_bundle,
    )

    __version__: str

_NAMES = {
    "export": (
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
    ),
    "runtime": (
        "Bundle",
        "BundleError",
        "DeviceUnavailable",
        "DoesNotFit",
        "ExecutionError",
        "GoldenMismatch",
        "IncompatibleProgram",
        "IntegrityError",
        "InvalidInput",
        "ManifestError",
        "Model",
        "SignatureMismatch",
        "UnsupportedFormat",
        "__version__",
        "assert_bundle_matches_goldens",
        "load",
        "open_bundle",
    ),
}
_HOME = {name: package for package, names in _NAMES.items() for name in names}

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "DeviceUnavailable",
    "DoesNotFit",
    "ExecutionError",
    "ExportError",
    "ExportSpec",
    "GoldenMismatch",
    "Image",
    "IncompatibleProgram",
    "IntegrityError",
    "InvalidInput",
    "ManifestError",
    "Model",
    "ParamsError",
    "Report",
    "RowMixing",
    "SignatureMismatch",
    "TensorSpec",
    "Text",
    "UnsupportedFormat",
    "VerificationError",
    "__version__",
    "assert_bundle_matches_goldens",
    "export_model",
    "load",
    "open_bundle",
]

if sys.argv[:1] != ["-m"]:  # the command itself, which runs in any folder
    expect_own()


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'hloserve' has no attribute {name!r}")
    import_own("runtime", _HOME[name])
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
