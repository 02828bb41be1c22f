"""What each field of an ExportSpec takes, and the one form that the exporter then sees.

Where a value can mean one thing only it is taken: NumPy's integers, one platform without a
list around it, `version=3`. All else is refused in one line. What values a bundle may have is
decided by `runtime.signature` and `runtime.manifest`; here is only how they are written.
"""

import ast
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from export.errors import ExportError
from export.inputs import read_axes, read_buckets, read_inputs
from export.labels import LabelsOfFile, labels_of
from export.preprocess import read_preprocess
from export.values import as_int, as_list, short_repr
from runtime.entries import PLATFORMS, SCORES, OutputFormat
from runtime.errors import InvalidField, nearest
from runtime.manifest import check_name, check_version
from runtime.signature import unique

PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
CAST_DTYPES = ("bfloat16", "float16", "float32")


def read_field(name: str, value: Any) -> Any:
    """Return a field's value in its one form.

    Raises:
      ExportError: it is none that the field takes.
    """
    try:
        return _READERS.get(name, lambda any_value: any_value)(value)
    except InvalidField as error:
        raise ExportError(f"{name}: {error}") from None


def parse_output(text: str) -> OutputFormat:
    """Read an output format: `raw`, `softmax[:OUTPUT]`, `classification:SCORES[:OUTPUT]`.

    Or `embedding[:OUTPUT]` and `embedding:normalized[:OUTPUT]`.

    Raises:
      ExportError: it does not read so.
    """
    forms = (
        *("raw", "softmax", "classification:logits", "classification:probabilities"),
        *("embedding", "embedding:normalized"),
    )
    if not isinstance(text, str):
        raise ExportError(f"output: expected {', '.join(forms)}, got {short_repr(text)}")
    kind, *rest = text.split(":")
    if kind == "raw" and not rest:
        return OutputFormat()
    if kind == "softmax" and len(rest) <= 1:
        return OutputFormat(kind=kind, output=rest[0] if rest else None)
    if kind == "classification" and rest and rest[0] in SCORES and len(rest) <= 2:
        return OutputFormat(kind=kind, scores=rest[0], output=rest[1] if rest[1:] else None)
    if kind == "embedding":
        normalized = rest[:1] == ["normalized"]
        named = rest[normalized:]
        if len(named) <= 1:
            return OutputFormat(
                kind=kind, output=named[0] if named else None, normalized=normalized
            )
    raise ExportError(f"output: expected {', '.join(forms)}, got {text!r}{nearest(text, forms)}")


def _platforms(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else as_list(value)
    if not names:
        raise ExportError(
            f"platforms: expected some of {', '.join(PLATFORMS)}, got {short_repr(value)}"
        )
    for name in names:
        if name == "gpu":  # as JAX calls any
            raise ExportError("platforms: expected cuda or rocm for a GPU, got 'gpu'")
        _one_of("platforms", name, PLATFORMS)
    unique(names)
    return tuple(names)


def _labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | os.PathLike):
        value = labels_of(value)
    names = as_list(value)
    if names is None or not all(isinstance(name, str) for name in names):
        raise ExportError(
            f"labels: expected a list of names such as ['cat', 'dog'], got {short_repr(value)}"
        )
    for i, name in enumerate(names):
        if not name.strip():
            raise ExportError(f"labels: expected a name for each class, got {name!r} for class {i}")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ExportError(f"labels: expected text, got {name!r}, which has half of a character")
    unique(names)  # answers have probabilities by label
    return value if isinstance(value, LabelsOfFile) else tuple(names)


def _cast(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else _one_of("dtype", value, CAST_DTYPES)
    try:
        name = np.dtype(value).name  # jnp.bfloat16 and the like
    except TypeError:
        name = value
    return _one_of("dtype", name, CAST_DTYPES)


def _precision(value: Any) -> str | None:
    return None if value is None else _one_of("matmul_precision", value, PRECISIONS)


def _output(value: Any) -> str:
    parse_output(value)
    return str(value)


def _golden(value: Any) -> Any:
    if value is not None and not isinstance(value, str | os.PathLike | Mapping):
        raise ExportError(
            f"golden: expected a file, or rows of inputs by name, got {short_repr(value)}"
        )
    return value


def _fields(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else as_list(value)
    if names is None or not all(isinstance(name, str) and name for name in names):
        raise ExportError(
            f"passthrough: expected names of fields such as ['key'], got {short_repr(value)}"
        )
    return tuple(dict.fromkeys(names))


def _output_names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else as_list(value)
    if names is None or not all(isinstance(name, str) for name in names):
        raise ExportError(
            f"allow_infinite: expected names of outputs such as ['logits'], got {short_repr(value)}"
        )
    return tuple(dict.fromkeys(names))


def _pixel_tolerance(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = value.split(",") if isinstance(value, str) else as_list(value)
    try:
        mean, worst = map(float, pair or ())
    except (TypeError, ValueError):
        mean = worst = -1.0
    if not 0 <= mean <= worst <= 255:
        raise ExportError(
            "pixel_tolerance: expected levels of 0 to 255, in the mean and in the worst pixel, such as "
            f"(1, 8), got {short_repr(value)}"
        )
    return mean, worst


def _seed(value: Any) -> int:
    seed = as_int(value)
    if seed is None or seed < 0:
        raise ExportError(f"seed: expected 0 or more, got {short_repr(value)}")
    return seed


def _model_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ExportError(f"name: expected letters, digits, '_.-', got {short_repr(value)}")
    check_name(value)
    return value


def _version(value: Any) -> str:
    whole = value if isinstance(value, str) else as_int(value)
    if whole is None:
        raise ExportError(f"version: expected digits, got {short_repr(value)}")
    check_version(str(whole))
    return str(whole)


def _params_path(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise ExportError(
            f"params_path: expected keys joined by '.' such as 'ema_params', got {short_repr(value)}"
        )
    return value


def _call_args(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ExportError(
            f"call_args: expected arguments by name such as {{'train': False}}, got {short_repr(value)}"
        )
    return dict(value)


def parse_argument(text: str) -> tuple[str, Any]:
    """Read `NAME=VALUE`, where the value is a Python literal.

    Raises:
      ExportError: it does not read so; a word without quotes would be taken for a text, which is
        true whatever it says.
    """
    name, equals, written = text.partition("=")
    form = "expected NAME=VALUE with a Python literal such as train=False, layers=2 or"
    if not equals or not name.strip().isidentifier():
        raise ExportError(f"call_args: {form} mode='eval', got {text!r}")
    try:
        return name.strip(), ast.literal_eval(written.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        word = written.strip()
        meant = word.capitalize() if word.lower() in ("true", "false", "none") else repr(word)
        raise ExportError(
            f"call_args: {form} mode='eval', got {text!r}; did you mean {name.strip()}={meant}?"
        ) from None


def _reference(value: Any) -> Any:
    if value is not None and not callable(value):
        raise ExportError(
            f"reference_preprocess: expected a function of a list of texts, got {short_repr(value)}"
        )
    return value


def _flag(name: str) -> Callable[[Any], bool]:
    def read(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise ExportError(f"{name}: expected True or False, got {short_repr(value)}")
        return bool(value)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "inputs": read_inputs,
    "buckets": read_buckets,
    "axes": read_axes,
    "platforms": _platforms,
    "output": _output,
    "labels": _labels,
    "dtype": _cast,
    "matmul_precision": _precision,
    "golden": _golden,
    "allow_infinite": _output_names,
    "seed": _seed,
    "name": _model_name,
    "version": _version,
    "params_path": _params_path,
    "call_args": _call_args,
    "preprocess": read_preprocess,
    "passthrough": _fields,
    "reference_preprocess": _reference,
    "pixel_tolerance": _pixel_tolerance,
    **{
        name: _flag(name)
        for name in ("page_sample", "allow_row_mixing", "unverified", "allow_pickle")
    },
}


def _one_of(what: str, value: Any, options: Sequence[str]) -> str:
    if value not in options:
        hint = nearest(value, options) if isinstance(value, str) else ""
        raise ExportError(f"{what}: expected {', '.join(options)}, got {short_repr(value)}{hint}")
    return str(value)
