"""What a Python program passes to `predict`, as arrays of the signature's dtypes.

Nested lists are read as JSON's are, and int64, which NumPy makes of integers, is taken for a narrower
dtype where each value fits: nothing is coerced that would change a value.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.records.tensors import convert, refuse
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype


def exact_arrays(signature: Signature, inputs: Mapping[str, object]) -> Mapping[str, object]:
    """Return inputs with lists as arrays, and int64 in the width that the signature has.

    What fits already, and what does not and never would, is left as it is.

    Args:
      signature: of the bundle.
      inputs: name to array, or to nested lists.

    Raises:
      SignatureMismatch: an element is no value of its input's dtype.
    """
    changed: dict[str, object] = {}
    for spec in signature.inputs:
        value = inputs.get(spec.name)
        if value is None or (type(value) is np.ndarray and value.dtype == numpy_dtype(spec.dtype)):
            continue
        if isinstance(value, list | tuple):
            value = _from_lists(spec, value)
        changed[spec.name] = _fitting(spec, value)
    return {**inputs, **changed} if changed else inputs


def _from_lists(spec: TensorSpec, value: list[Any] | tuple[Any, ...]) -> object:
    first: Any = value
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if hasattr(first, "__array__"):  # rows that are arrays, or NumPy's own numbers
        return value
    lists = _lists(value)
    array = convert(spec.dtype, lists)
    if array is None:
        raise refuse(spec.dtype, lists, f"input {spec.name!r}")
    return array


def _lists(value: Any) -> Any:
    return [_lists(one) for one in value] if isinstance(value, list | tuple) else value


def _fitting(spec: TensorSpec, value: object) -> object:
    """Return int64 in the width of the input, where that is what a value is and the input is not."""
    wanted = numpy_dtype(spec.dtype)
    try:
        array: Array = np.asarray(value)
    except ValueError:  # lists of different lengths, which the checker refuses
        return value
    if array.dtype != np.int64 or wanted == np.int64 or wanted.kind not in "iu":
        return value
    info = np.iinfo(wanted)
    if array.size:
        for extreme in (int(array.min()), int(array.max())):
            if not info.min <= extreme <= info.max:
                raise SignatureMismatch(
                    f"input {spec.name!r}: expected values of {spec.dtype}, got {extreme}"
                )
    return array.astype(wanted)
