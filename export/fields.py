"""What each field of an ExportSpec takes, and the one form that the exporter then sees.

Where a value can mean one thing only it is taken: NumPy's integers, one platform without a
list around it, `version=3`. All else is refused in one line.
"""

import ast
import dataclasses
import itertools
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from export.errors import ExportError
from export.labels import LabelsOfFile
from export.notation import UNKNOWN, dtype_hint, rewritten, shape_hint
from export.preprocess import read_preprocess
from runtime.entries import PLATFORMS, SCORES, OutputFormat
from runtime.errors import nearest
from runtime.signature import BATCH, DTYPE_BYTES, Axis, Dim, TensorSpec

PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
CAST_DTYPES = ("bfloat16", "float16", "float32")

_INPUT = re.compile(r"\s*(?P<name>[^:\s]+)\s*:\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\]]*)\]\s*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_AXIS = re.compile(r"\s*(?:(?P<minimum>\d+)\s*\.\.\s*)?(?P<sizes>\d+(?:\s*,\s*\d+)*)\s*")


def read_field(name: str, value: Any) -> Any:
    """Return a field's value in its one form.

    Raises:
      ExportError: it is none that the field takes.
    """
    return _READERS.get(name, lambda any_value: any_value)(value)


def parse_input(text: str) -> TensorSpec:
    """Read `name:dtype[_, 28, seq]`.

    Raises:
      ExportError: it does not read so, or the dtype is unknown.
    """
    match = _INPUT.fullmatch(text)
    if match is None or not _NAME.fullmatch(match["name"]):
        meant = rewritten(text)
        raise ExportError(
            f"input {text!r}: expected NAME:DTYPE[_, SIZE, …] such as x:float32[_,28,28,1]"
            f"{f'; write {meant}' if meant else ''}"
        )
    dims: list[Dim] = []
    for word in match["shape"].split(","):
        dim = word.strip()
        dims.append(int(dim) if dim.isdecimal() else dim)
    spec = TensorSpec(name=match["name"], dtype=match["dtype"], shape=tuple(dims))
    _check_form(spec, text)
    return spec


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
        raise ExportError(f"output: expected {', '.join(forms)}, got {_got(text)}")
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


def unique(what: str, names: Sequence[str]) -> None:
    """Raise ExportError if a name stands twice."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ExportError(f"{what}: expected each name once, got {twice[0]!r} twice")


def _inputs(value: Any) -> tuple[TensorSpec, ...]:
    given = [value] if isinstance(value, str | TensorSpec) else _listed(value)
    if given is None or not all(isinstance(one, str | TensorSpec) for one in given):
        raise ExportError(
            f"inputs: expected a list such as ['x:float32[_,28,28,1]'], got {_got(value)}"
        )
    specs = tuple(parse_input(one) if isinstance(one, str) else _tidy(one) for one in given)
    unique("inputs", [spec.name for spec in specs])
    for spec in specs:
        _check_input(spec)
    return specs


def _tidy(spec: TensorSpec) -> TensorSpec:
    """Return a user's TensorSpec with plain numbers, and an integer mask with its range."""
    shape = tuple(_dim(dim) for dim in spec.shape)
    low, high = spec.minimum, spec.maximum
    if spec.mask and "int" in str(spec.dtype):
        low, high = 0 if low is None else low, 1 if high is None else high
    spec = dataclasses.replace(
        spec,
        dtype=_dtype_name(spec.dtype),
        shape=shape,
        pad=_number(spec, "pad", spec.pad),
        mask=bool(spec.mask),
        minimum=None if low is None else _number(spec, "minimum", low),
        maximum=None if high is None else _axis_name(high) or _number(spec, "maximum", high),
    )
    if spec.nonfinite is not None:
        raise ExportError(
            f"input {spec.name!r}: expected no nonfinite for an input, got {spec.nonfinite!r}; name "
            "outputs with allow_infinite"
        )
    _check_form(spec, "")
    return spec


def _axis_name(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isidentifier() else None


def _number(spec: TensorSpec, key: str, value: Any) -> Any:
    whole = _whole(value)
    if whole is None and not (key == "pad" and isinstance(value, float | np.floating)):
        raise ExportError(f"input {spec.name!r}: expected a number as {key}, got {_got(value)}")
    return float(value) if whole is None else whole


def _dim(dim: Any) -> Dim:
    """Return a size as a plain number, and what is none as it would be written."""
    whole = None if isinstance(dim, str) else _whole(dim)
    return str(dim) if whole is None else whole


def _dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of NumPy or JAX; that of another library is refused by its own."""
    try:
        return dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _check_form(spec: TensorSpec, text: str) -> None:
    """Refuse a dtype or a shape that is none; `text` is what was written, if it was."""
    if spec.dtype not in DTYPE_BYTES:
        # Where more than that is wrong, all of it at once.
        meant = rewritten(text) if spec.shape[:1] != (BATCH,) and dtype_hint(spec.dtype) else ""
        raise ExportError(
            f"input {spec.name!r}: expected a dtype of {', '.join(DTYPE_BYTES)}, "
            f"got {spec.dtype!r}{f'; write {meant}' if meant else dtype_hint(spec.dtype)}"
        )
    for i, dim in enumerate(spec.shape or ("",)):
        word = isinstance(dim, str) and dim.isidentifier() and dim.isascii() and dim not in UNKNOWN
        named = word and (dim == BATCH) == (i == 0)
        if not (named or (isinstance(dim, int) and dim >= 0 and i > 0)):
            raise ExportError(
                f"input {spec.name!r}: expected [{BATCH}, …] with sizes or axis names "
                f"after the batch, got {str(dim)!r}{f' in {text!r}' if text else ''}"
                f"{shape_hint(list(map(str, spec.shape)), text)}"
            )


def _check_input(spec: TensorSpec) -> None:
    floating = "float" in spec.dtype
    if floating and (spec.minimum is not None or spec.maximum is not None):
        raise ExportError(
            f"input {spec.name!r}: expected an integer dtype for a range, got {spec.dtype}"
        )
    top = spec.maximum
    if spec.minimum is not None and isinstance(top, int) and spec.minimum > top:
        raise ExportError(f"input {spec.name!r}: expected a range, got {spec.minimum}:{top}")
    if not floating and not float(spec.pad).is_integer():
        raise ExportError(f"input {spec.name!r}: expected a pad of {spec.dtype}, got {spec.pad}")
    if spec.dtype != "bool" and not floating:
        info = np.iinfo(spec.dtype)
        for bound in (spec.minimum, spec.maximum, int(spec.pad)):
            if isinstance(bound, int) and not info.min <= bound <= info.max:
                raise ExportError(
                    f"input {spec.name!r}: expected values of {spec.dtype}, got {bound}"
                )
    if spec.mask and not any(isinstance(dim, str) for dim in spec.shape[1:]):
        raise ExportError(f"input {spec.name!r}: expected a bucketed axis for a mask, got {spec}")


def _buckets(value: Any) -> tuple[int, ...]:
    words = value.split(",") if isinstance(value, str) else _listed(value)
    sizes = words and [_whole(word) for word in words]
    if not sizes or None in sizes:
        raise ExportError(f"buckets: expected sizes such as 1,8,32, got {_got(value)}")
    return _increasing("buckets", sizes)


def _axes(value: Any) -> dict[str, Axis]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ExportError(
            f"axes: expected sizes by name such as {{'seq': (32, 64)}}, got {_got(value)}"
        )
    return {name: _axis(name, sizes) for name, sizes in value.items()}


def _axis(name: str, value: Any) -> Axis:
    """Read an axis: an Axis, its sizes, or `MINIMUM..SIZE,SIZE` as on the command line."""
    minimum: Any = 1
    if isinstance(value, Axis):
        minimum, sizes = _whole(value.minimum), [_whole(size) for size in value.sizes]
    elif isinstance(value, str):
        match = _AXIS.fullmatch(value)
        sizes = [int(word) for word in match["sizes"].split(",")] if match else []
        minimum = int(match["minimum"] or 1) if match else 1
    else:
        sizes = [_whole(size) for size in _listed(value) or ()]
    if not sizes or None in (minimum, *sizes):
        raise ExportError(
            f"axis {name!r}: expected sizes such as 32,64, or 3..32,64 for lengths from 3 on, got "
            f"{_got(value)}"
        )
    axis = Axis(name=name, sizes=_increasing(f"axis {name!r}", sizes), minimum=minimum)
    if not 0 <= axis.minimum <= axis.sizes[0]:
        raise ExportError(
            f"axis {name!r}: expected a minimum up to its first size {axis.sizes[0]}, got {minimum}"
        )
    return axis


def _increasing(what: str, sizes: Sequence[Any]) -> tuple[int, ...]:
    if sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise ExportError(f"{what}: expected increasing sizes from 1 on, got {list(sizes)}")
    return tuple(sizes)


def _platforms(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else _listed(value)
    if not names:
        raise ExportError(f"platforms: expected some of {', '.join(PLATFORMS)}, got {_got(value)}")
    for name in names:
        if name == "gpu":  # as JAX calls any
            raise ExportError("platforms: expected cuda or rocm for a GPU, got 'gpu'")
        _one_of("platforms", name, PLATFORMS)
    unique("platforms", names)
    return tuple(names)


def _labels(value: Any) -> tuple[str, ...]:
    names = None if isinstance(value, str) else _listed(value)
    if names is None or not all(isinstance(name, str) for name in names):
        raise ExportError(
            f"labels: expected a list of names such as ['cat', 'dog'], got {_got(value)}"
        )
    for i, name in enumerate(names):
        if not name.strip():
            raise ExportError(f"labels: expected a name for each class, got {name!r} for class {i}")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ExportError(f"labels: expected text, got {name!r}, which has half of a character")
    unique("labels", names)  # answers have probabilities by label
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
        raise ExportError(f"golden: expected a file, or rows of inputs by name, got {_got(value)}")
    return value


def _fields(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else _listed(value)
    if names is None or not all(isinstance(name, str) and name for name in names):
        raise ExportError(
            f"passthrough: expected names of fields such as ['key'], got {_got(value)}"
        )
    return tuple(dict.fromkeys(names))


def _output_names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else _listed(value)
    if names is None or not all(isinstance(name, str) for name in names):
        raise ExportError(
            f"allow_infinite: expected names of outputs such as ['logits'], got {_got(value)}"
        )
    return tuple(dict.fromkeys(names))


def _seed(value: Any) -> int:
    seed = _whole(value)
    if seed is None or seed < 0:
        raise ExportError(f"seed: expected 0 or more, got {_got(value)}")
    return seed


def _model_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", value):
        raise ExportError(f"name: expected letters, digits, '_.-', got {_got(value)}")
    return value


def _version(value: Any) -> str:
    text = value if isinstance(value, str) else str(_whole(value))
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ExportError(f"version: expected digits, got {_got(value)}")
    return text


def _params_path(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value):
        raise ExportError(
            f"params_path: expected keys joined by '.' such as 'ema_params', got {_got(value)}"
        )
    return value


def _call_args(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ExportError(
            f"call_args: expected arguments by name such as {{'train': False}}, got {_got(value)}"
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
            f"reference_preprocess: expected a function of a list of texts, got {_got(value)}"
        )
    return value


def _flag(name: str) -> Callable[[Any], bool]:
    def read(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise ExportError(f"{name}: expected True or False, got {_got(value)}")
        return bool(value)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "inputs": _inputs,
    "buckets": _buckets,
    "axes": _axes,
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
    **{name: _flag(name) for name in ("allow_row_mixing", "unverified", "allow_pickle")},
}


def _one_of(what: str, value: Any, options: Sequence[str]) -> str:
    if value not in options:
        hint = nearest(value, options) if isinstance(value, str) else ""
        raise ExportError(f"{what}: expected {', '.join(options)}, got {_got(value)}{hint}")
    return str(value)


def _listed(value: Any) -> list[Any] | None:
    """Return the items of what is meant as a list, or None."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return None
    return list(value) if np.ndim(value) <= 1 else None  # type: ignore[arg-type]


def _whole(value: Any) -> int | None:
    """Return a whole number as an int, NumPy's and written ones too, or None."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else None
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _got(value: Any) -> str:
    """Write a wrong value: as it is where that is short, else its type."""
    text = repr(value)
    plain = isinstance(value, str) or (len(text) <= 60 and "\n" not in text)
    return text if plain else type(value).__name__
