"""Inputs, buckets and axes as people write them, in the one form that the exporter then sees."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.errors import ExportError
from export.notation import UNKNOWN, dtype_hint, rewritten, shape_hint
from export.values import as_int, as_ints, as_list, short_repr
from runtime.errors import InvalidField
from runtime.signature import BATCH, Axis, Dim, TensorSpec, increasing, misplaced, unique

_INPUT = re.compile(r"\s*(?P<name>[^:\s]+)\s*:\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\]]*)\]\s*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_AXIS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AXIS = re.compile(r"\s*(?:(?P<minimum>\d+)\s*\.\.\s*)?(?P<sizes>\d+(?:\s*,\s*\d+)*)\s*")


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
    return _checked(TensorSpec(name=match["name"], dtype=match["dtype"], shape=tuple(dims)), text)


def read_inputs(value: Any) -> tuple[TensorSpec, ...]:
    """Return inputs that are each a TensorSpec or text; one alone is a list of one.

    Raises:
      ExportError: an input does not read, or no signature takes it.
      InvalidField: two have one name.
    """
    given = [value] if isinstance(value, str | TensorSpec) else as_list(value)
    if given is None or not all(isinstance(one, str | TensorSpec) for one in given):
        raise ExportError(
            f"inputs: expected a list such as ['x:float32[_,28,28,1]'], got {short_repr(value)}"
        )
    specs = tuple(parse_input(one) if isinstance(one, str) else _tidy(one) for one in given)
    unique(spec.name for spec in specs)
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
    return _checked(spec)


def _axis_name(value: Any) -> str | None:
    return value if isinstance(value, str) and value.isidentifier() else None


def _number(spec: TensorSpec, key: str, value: Any) -> Any:
    whole = as_int(value)
    if whole is None and not (key == "pad" and isinstance(value, float | np.floating)):
        raise ExportError(
            f"input {spec.name!r}: expected a number as {key}, got {short_repr(value)}"
        )
    return float(value) if whole is None else whole


def _dim(dim: Any) -> Dim:
    """Return a size as a plain number, and what is none as it would be written."""
    whole = None if isinstance(dim, str) else as_int(dim)
    return str(dim) if whole is None else whole


def _dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of NumPy or JAX; that of another library is refused by its own."""
    try:
        return dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _checked(spec: TensorSpec, text: str = "") -> TensorSpec:
    """Return a tensor that signatures take, with names of axes that flags take.

    Args:
      spec: the tensor.
      text: that it was written as, or nothing.

    Raises:
      ExportError: it is none; says what is meant, where that can be one thing alone.
    """
    try:
        spec.check()
        for i, dim in enumerate(spec.shape):
            # Any text names an axis of a bundle. `None`, `-1` and `2.5` name none here.
            if isinstance(dim, str) and (not _AXIS_NAME.fullmatch(dim) or dim in UNKNOWN):
                raise misplaced(dim, i)
    except InvalidField as error:
        advice = ""
        if error.path[0] == "dtype":
            # Where more than that is wrong, all of it at once.
            hint = dtype_hint(spec.dtype)
            meant = rewritten(text) if spec.shape[:1] != (BATCH,) and hint else ""
            advice = f"; write {meant}" if meant else hint
        elif error.path[0] == "shape":
            advice = f" in {text!r}" if text else ""
            advice += shape_hint(list(map(str, spec.shape)), text)
        raise ExportError(f"input {spec.name!r}: {error}{advice}") from None
    return spec


def read_buckets(value: Any) -> tuple[int, ...]:
    """Return batch sizes, from a list or from text such as `1,8,32`.

    Raises:
      ExportError: they are no sizes.
      InvalidField: they do not increase.
    """
    words = value.split(",") if isinstance(value, str) else as_list(value)
    sizes = as_ints(words or ())
    if not sizes:
        raise ExportError(f"buckets: expected sizes such as 1,8,32, got {short_repr(value)}")
    increasing(sizes)
    return sizes


def read_axes(value: Any) -> dict[str, Axis]:
    """Return bucketed axes by name, each from an Axis, its sizes or text such as `3..32,64`.

    Raises:
      ExportError: one does not read, or no signature takes it.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ExportError(
            f"axes: expected sizes by name such as {{'seq': (32, 64)}}, got {short_repr(value)}"
        )
    return {name: _axis(name, sizes) for name, sizes in value.items()}


def _axis(name: str, value: Any) -> Axis:
    """Read an axis: an Axis, its sizes, or `MINIMUM..SIZE,SIZE` as on the command line."""
    written: tuple[Any, Any] = (1, value)
    if isinstance(value, Axis):
        written = value.minimum, value.sizes
    elif isinstance(value, str) and (match := _AXIS.fullmatch(value)):
        written = match["minimum"] or 1, match["sizes"].split(",")
    minimum, sizes = as_int(written[0]), as_ints(as_list(written[1]) or ())
    if minimum is None or not sizes:
        raise ExportError(
            f"axis {name!r}: expected sizes such as 32,64, or 3..32,64 for lengths from 3 on, got "
            f"{short_repr(value)}"
        )
    axis = Axis(name=name, sizes=sizes, minimum=minimum)
    try:
        axis.check()
    except InvalidField as error:
        raise ExportError(f"axis {name!r}: {error}") from None
    return axis
