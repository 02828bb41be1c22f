"""Run a bundle: compiled StableHLO programs on one device, without the model's source.

    from runtime import load
    model = load("bundle/")
    answers = model.predict({"image": rows})

Importable without Flax, TensorFlow or any server. Loading a bundle opens no network
connection. Names are imported when first used, so that `runtime.manifest` can be read
by tools that have neither NumPy nor JAX.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if sys.version_info < (3, 12):  # noqa: UP036 (a checkout runs with any; pip refuses older ones)
    _found = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise ImportError(f"hloserve: expected Python 3.12 or later, got {_found}, {sys.executable}")

if TYPE_CHECKING:
    from runtime.bundle import Bundle, open_bundle
    from runtime.errors import (
        BundleError,
        DeviceUnavailable,
        DoesNotFit,
        ExecutionError,
        GoldenMismatch,
        IncompatibleProgram,
        IntegrityError,
        InvalidInput,
        ManifestError,
        SignatureMismatch,
        UnsupportedFormat,
    )
    from runtime.loading import load
    from runtime.model import Model
    from runtime.verify import assert_bundle_matches_goldens

    __version__: str

_HOMES = {
    "runtime.bundle": ("Bundle", "open_bundle"),
    "runtime.errors": (
        "BundleError",
        "DeviceUnavailable",
        "DoesNotFit",
        "ExecutionError",
        "GoldenMismatch",
        "IncompatibleProgram",
        "IntegrityError",
        "InvalidInput",
        "ManifestError",
        "SignatureMismatch",
        "UnsupportedFormat",
    ),
    "runtime.loading": ("load",),
    "runtime.model": ("Model",),
    "runtime.verify": ("assert_bundle_matches_goldens",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
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
    "assert_bundle_matches_goldens",
    "load",
    "open_bundle",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("runtime.release").version()
    if name not in _HOME:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
