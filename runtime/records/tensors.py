"""JSON numbers, or bytes, to arrays of a dtype, element by element: nothing is coerced.

NumPy would turn null into NaN, "1.5" into 1.5, true into 1 and 1.9 into 1.
"""

import base64
import binascii
import contextlib
import itertools
import math
import struct
from typing import Any

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.tensors import Array, numpy_dtype

# Whole numbers from here on may have lost bits on their way through a JSON double.
_EXACT = 2**53
# Of a NumPy array.
_MAX_AXES = 64


def convert(dtype: str, values: Any, *, booleans: bool = True) -> Array | None:
    """Convert nested lists, or one number, to an array of whatever shape they have.

    Whole doubles pass for integers, since every number is a double on some ways here.

    Args:
      dtype: of the array.
      values: as JSON has them.
      booleans: whether there can be any among them; to look for them takes longer than all
        else that there is to do.

    Returns:
      The array; None if an element is not legal as it stands, or lists differ in length.
      It can be read-only.
    """
    found = _flatten(values)
    if found is None:
        return None
    elements, shape = found
    try:
        array = _pack(dtype, elements, booleans=booleans)
        return None if array is None else array.reshape(shape)
    except (ValueError, OverflowError):  # more dimensions than there can be, or out of range
        return None


def _flatten(values: Any) -> tuple[list[Any], tuple[int, ...]] | None:
    """Return the elements of nested lists in row-major order, and the shape; None if ragged."""
    if type(values) is not list:
        return [values], ()
    shape = [len(values)]
    while values and type(values[0]) is list:
        if len(values) == 1:
            values = values[0]
            shape.append(len(values))
            continue
        if set(map(type, values)) != {list} or len(set(map(len, values))) != 1:
            return None
        shape.append(len(values[0]))
        values = list(itertools.chain.from_iterable(values))
    return values, tuple(shape)


def _pack(dtype: str, elements: list[Any], *, booleans: bool) -> Array | None:
    wanted = numpy_dtype(dtype)
    if booleans and not set(map(type, elements)) <= _kinds(dtype):
        return None
    if dtype in _FORMATS:
        # It refuses what is no number, or beyond its kind of number, but takes booleans for
        # numbers. It needs half of NumPy's time.
        try:
            packed = struct.pack(f"={len(elements)}{_FORMATS[dtype]}", *elements)
            return np.frombuffer(packed, wanted)
        except struct.error:
            pass
    return _look(elements, wanted)


def _kinds(dtype: str) -> set[type]:
    return {bool} if dtype == "bool" else {int, float}


def _look(elements: list[Any], wanted: np.dtype[Any]) -> Array | None:
    """Read whole doubles as integers, or a dtype that only NumPy knows."""
    kinds = set(map(type, elements))
    if not kinds <= _kinds(wanted.name):
        return None
    if wanted == np.dtype(bool):
        return np.array(elements, bool)
    doubles = np.array(elements, np.float64)
    if wanted.kind not in "iu":
        return _floats(doubles, wanted)
    whole = _whole(doubles, wanted)
    return _mixed(elements, wanted) if whole is None and kinds == {int, float} else whole


# Of the struct module.
_FORMATS = {
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}


def narrowed(dtype: str, array: Array) -> Array | None:
    """Convert an array of numbers as `convert` does JSON's; None if a value does not fit.

    Doubles become the nearest narrower floats, whole ones integers; nothing else is changed. NaN and
    infinities stay what they are.

    Args:
      dtype: wanted.
      array: of any dtype of numbers, or of booleans.
    """
    wanted = numpy_dtype(dtype)
    if array.dtype == wanted:
        return array
    if array.dtype.kind not in "iuf" or wanted == np.dtype(bool):
        return None
    if wanted.kind in "iu":
        if array.dtype.kind == "f":
            return _whole(array, wanted) if array.size else array.astype(wanted)
        info = np.iinfo(wanted)
        fits = not array.size or info.min <= int(array.min()) <= int(array.max()) <= info.max
        return array.astype(wanted) if fits else None
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(wanted)
    return narrow if (np.isfinite(narrow) == np.isfinite(array)).all() else None


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
    """Return what `convert` did not like."""
    culprit = _first_illegal(dtype, values) or "lists of different lengths"
    return SignatureMismatch(f"{where}: expected {dtype}, got {culprit}")


def kind_of(value: Any) -> str:
    """Return the JSON type of a value with its article, for a message; the type's name of what JSON lacks."""
    if isinstance(value, str):
        return "a string"
    kinds = {type(None): "null", bool: "a boolean", dict: "an object", list: "an array"}
    number = "a number" if isinstance(value, int | float) else type(value).__name__
    return kinds.get(type(value), number)


def brief(value: Any) -> str:
    """Write a value of JSON for a message, whatever its size: a short one, or its kind."""
    if isinstance(value, str):
        return repr(value[:100])
    return repr(value)[:120] if isinstance(value, int | float) else kind_of(value)


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


def _mixed(elements: list[Any], wanted: np.dtype[Any]) -> Array | None:
    """Read integers of which only some are written as doubles: the others keep every bit."""
    double = np.array([type(element) is float for element in elements])
    whole = _whole(np.array([e for e in elements if type(e) is float]), wanted)
    if whole is None:
        return None
    array = np.empty(len(elements), wanted)
    array[double] = whole
    array[~double] = np.array([e for e in elements if type(e) is int], wanted)
    return array


def _first_illegal(dtype: str, value: Any) -> str | None:
    """Describe the first element that is not a value of the dtype; None if each of them is.

    Halves are converted, since a look at millions of elements one by one takes many seconds.
    """
    while type(value) is list:
        if (depth := _depth(value)) > _MAX_AXES:
            return f"lists {depth} deep"
        low, high = 0, len(value)
        while high - low > 1:
            middle = (low + high) // 2
            if convert(dtype, value[low:middle]) is None:
                high = middle
            else:
                low = middle
        if not value or convert(dtype, value[low]) is not None:
            return None
        value = value[low]
    legal = type(value) is bool if dtype == "bool" else type(value) in (int, float)
    return _shown(value) if legal else kind_of(value)


def from_base64(text: str, where: str) -> bytes:
    """Return the bytes that base64 stands for, padded as it has to be.

    Python's own reader ignores padding that is too much.

    Raises:
      SignatureMismatch: it is none.
    """
    characters = len(text.rstrip("="))
    if len(text) == characters + -characters % 4:
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(text, validate=True)
    if text.startswith("data:"):
        raise SignatureMismatch(
            f"{where}: expected base64, got a data URL; send what is behind its comma"
        )
    raise SignatureMismatch(f"{where}: expected base64, got other characters")


def _depth(values: Any) -> int:
    depth = 0
    while type(values) is list:
        depth += 1
        values = values[0] if values else None
    return depth


def _shown(value: float) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
