"""JSON numbers to arrays of a dtype, element by element as they stand: nothing is coerced.

NumPy would turn null into NaN, "1.5" into 1.5, true into 1 and 1.9 into 1.
"""

from typing import Any

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.tensors import Array, numpy_dtype

# Whole numbers from here on may have lost bits on their way through a JSON double.
_EXACT = 2**53


def convert(dtype: str, values: Any) -> Array | None:
    """Convert nested lists, or one number, to an array of whatever shape they have.

    Whole doubles pass for integers, since every number is a double on some ways here.

    Returns:
      The array; None if an element is not legal as it stands, or lists differ in length.
    """
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        return None
    if dtype == "uint64" and array.dtype.kind in "fO":
        array = _as_uint64(values, array)
    if not array.size:
        return array.astype(numpy_dtype(dtype))
    if dtype == "bool":
        return array if array.dtype.kind == "b" else None
    if array.dtype.kind not in "iuf" or _has_bools(values):
        return None
    return _as_float(dtype, array) if "float" in dtype else _as_integer(dtype, array)


def refuse(dtype: str, values: Any, where: str) -> SignatureMismatch:
    """Say what `convert` did not like."""
    try:
        culprit = _first_illegal(dtype, values)
    except RecursionError:
        culprit = "lists hundreds deep"
    if culprit is not None:
        return SignatureMismatch(f"{where}: expected {dtype}, got {culprit}")
    try:
        np.shape(values)
    except ValueError:
        return SignatureMismatch(f"{where}: expected {dtype}, got lists of different lengths")
    return SignatureMismatch(f"{where}: expected values of {dtype}, got one out of range")


def kind_of(value: Any) -> str:
    """Name the JSON kind of a value, for a message."""
    if isinstance(value, str):
        return "a string"
    kinds = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array"}
    return kinds.get(type(value), "a number")


def _as_uint64(values: Any, array: Array) -> Array:
    """Read integers beyond int64 exactly, where NumPy alone would make them floats."""
    if not all(type(value) is int for value in np.array(values, object).ravel()):
        return array
    try:
        return np.array(values, np.uint64)
    except OverflowError:
        return array


def _as_float(dtype: str, array: Array) -> Array | None:
    with np.errstate(over="ignore"):
        narrow = array.astype(numpy_dtype(dtype))
    return narrow if np.isfinite(narrow.astype(np.float64)).all() else None


def _as_integer(dtype: str, array: Array) -> Array | None:
    if array.dtype.kind == "f":
        whole = (np.abs(array) < _EXACT) & (array == np.floor(array))
        if not whole.all():
            return None
    info = np.iinfo(dtype)
    if int(array.min()) < info.min or int(array.max()) > info.max:
        return None
    return array.astype(dtype)


def _has_bools(values: Any) -> bool:
    """Say whether true or false hides among numbers, which NumPy takes for 1 and 0."""
    if isinstance(values, list):
        if values and isinstance(values[0], list):
            return any(map(_has_bools, values))
        return bool in set(map(type, values))
    return type(values) is bool


def _first_illegal(dtype: str, value: Any) -> str | None:
    """Describe the first element that is not of the dtype's kind."""
    if isinstance(value, list):
        found = (_first_illegal(dtype, inner) for inner in value)
        return next((culprit for culprit in found if culprit is not None), None)
    legal = type(value) is bool if dtype == "bool" else type(value) in (int, float)
    if not legal:
        return kind_of(value)
    fraction = type(value) is float and (not value.is_integer() or abs(value) >= _EXACT)
    return repr(value) if "int" in dtype and fraction else None
