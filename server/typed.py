"""JSON numbers, or bytes, to arrays of a dtype, element by element: nothing is coerced.

NumPy would turn null into NaN, "1.5" into 1.5, true into 1 and 1.9 into 1.
"""

import itertools
import math
from typing import Any

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.signature import limits
from runtime.tensors import Array, numpy_dtype

# Whole numbers from here on may have lost bits on their way through a JSON double.
_EXACT = 2**53


def convert(dtype: str, values: Any) -> Array | None:
    """Convert nested lists, or one number, to an array of whatever shape they have.

    Whole doubles pass for integers, since every number is a double on some ways here.

    Returns:
      The array; None if an element is not legal as it stands, or lists differ in length.
    """
    kinds = _kinds(values)
    wanted = numpy_dtype(dtype)
    if not kinds <= ({bool} if dtype == "bool" else {int, float}):
        return None
    try:
        if "float" in dtype:
            return _floats(np.array(values, np.float64), wanted)
        if float in kinds:
            whole = _whole(np.array(values, np.float64), wanted)
            return _mixed(values, wanted) if whole is None and int in kinds else whole
        return np.array(values, wanted)
    except (ValueError, OverflowError):  # lists of different lengths, or out of range
        return None


def from_bytes(dtype: str, shape: tuple[int, ...], data: bytes | memoryview, where: str) -> Array:
    """View little-endian bytes, in row-major order, as an array.

    Raises:
      SignatureMismatch: not as many bytes as the shape needs, or a boolean that is not 0 or 1.
    """
    wanted = numpy_dtype(dtype)
    expected = math.prod(shape) * wanted.itemsize
    if len(data) != expected:
        raise SignatureMismatch(
            f"{where}: expected {expected} bytes for shape {list(shape)}, got {len(data)}"
        )
    if dtype == "bool" and expected and np.frombuffer(data, np.uint8).max() > 1:
        raise SignatureMismatch(f"{where}: expected 0 or 1 in each byte, got another value")
    array = np.frombuffer(data, wanted).reshape(shape)
    return array if array.flags.aligned else array.copy()


def refuse(dtype: str, values: Any, where: str) -> SignatureMismatch:
    """Say what `convert` did not like."""
    try:
        culprit = _first_illegal(dtype, values)
    except RecursionError:
        culprit = "lists hundreds deep"
    if culprit is None:
        culprit = "lists of different lengths"
    return SignatureMismatch(f"{where}: expected {dtype}, got {culprit}")


def kind_of(value: Any) -> str:
    """Name the JSON kind of a value, for a message."""
    if isinstance(value, str):
        return "a string"
    kinds = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array"}
    return kinds.get(type(value), "a number")


def _kinds(values: Any) -> set[type]:
    """Give the types of all elements, `list` among them where a level has lists and others."""
    if type(values) is not list:
        return {type(values)}
    kinds = set(map(type, values))
    while kinds == {list}:
        values = list(itertools.chain.from_iterable(values))
        kinds = set(map(type, values))
    return kinds


def _floats(array: Array, wanted: np.dtype[Any]) -> Array | None:
    with np.errstate(over="ignore"):
        narrow = array.astype(wanted)
    return narrow if np.isfinite(narrow).all() else None


def _whole(array: Array, wanted: np.dtype[Any]) -> Array | None:
    info = np.iinfo(wanted)
    whole = (np.abs(array) < _EXACT) & (array == np.floor(array))
    if not whole.all() or array.min() < info.min or array.max() > info.max:
        return None
    return array.astype(wanted)


def _mixed(values: Any, wanted: np.dtype[Any]) -> Array | None:
    """Read integers of which only some are written as doubles: the others keep every bit."""
    array = np.array(values, object)
    return array.astype(wanted) if all(_fits(wanted.name, v) for v in array.flat) else None


def _first_illegal(dtype: str, value: Any) -> str | None:
    """Describe the first element that is not a value of the dtype."""
    if isinstance(value, list):
        found = (_first_illegal(dtype, inner) for inner in value)
        return next((culprit for culprit in found if culprit is not None), None)
    legal = type(value) is bool if dtype == "bool" else type(value) in (int, float)
    if not legal:
        return kind_of(value)
    return None if _fits(dtype, value) else _shown(value)


def _fits(dtype: str, value: float) -> bool:
    if dtype == "bool":
        return True
    if "float" in dtype:
        return _floats_fit(dtype, value)
    if type(value) is float and (abs(value) >= _EXACT or not value.is_integer()):
        return False
    low, high = limits(dtype)
    return low <= value <= high


def _floats_fit(dtype: str, value: float) -> bool:
    try:
        return _floats(np.array([value], np.float64), numpy_dtype(dtype)) is not None
    except OverflowError:
        return False


def _shown(value: float) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
