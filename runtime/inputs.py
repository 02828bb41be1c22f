"""What a caller sends, held against the signature: names, dtypes, shapes, ranges.

Nothing is converted: a wrong dtype is an error, never a silent cast.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.signature import BATCH, Signature, TensorSpec, notation
from runtime.tensors import Array, numpy_dtype


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """Inputs that fit the signature.

    Attributes:
      arrays: in the signature's order; None for a mask that was left out.
      rows: the size of the batch axis.
      sizes: the real size of each bucketed axis, in the signature's order.
    """

    arrays: tuple[Array | None, ...]
    rows: int
    sizes: tuple[int, ...]


def check(signature: Signature, inputs: Mapping[str, object]) -> Checked:
    """Hold inputs against the signature.

    Args:
      signature: of the bundle.
      inputs: name to array. Masks may be missing.

    Raises:
      SignatureMismatch: the first thing that does not fit, in the signature's order.
    """
    dims: dict[str, int] = {}
    arrays: list[Array | None] = []
    taken = 0
    for spec in signature.inputs:
        value = inputs.get(spec.name)
        if value is None:
            if not spec.mask:
                _refuse_unknown(signature, inputs)
                raise SignatureMismatch(f"input {spec.name!r}: expected {spec}, got nothing")
            arrays.append(None)
            continue
        array = _as_array(spec, value)
        _check_shape(spec, array, dims)
        if spec.minimum is not None or spec.maximum is not None:
            check_range(spec, array)
        arrays.append(array)
        taken += 1
    if len(inputs) > taken:
        _refuse_unknown(signature, inputs)
    for axis in signature.axes:
        if dims.get(axis.name, 0) > axis.sizes[-1]:
            raise SignatureMismatch(
                f"axis {axis.name!r}: expected at most {axis.sizes[-1]}, got {dims[axis.name]}"
            )
    sizes = tuple(dims.get(axis.name, axis.sizes[0]) for axis in signature.axes)
    return Checked(tuple(arrays), dims[BATCH], sizes)


def _as_array(spec: TensorSpec, value: object) -> Array:
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        raise SignatureMismatch(
            f"input {spec.name!r}: expected {spec}, got a {type(value).__name__} that is no array"
        ) from None


def _refuse_unknown(signature: Signature, inputs: Mapping[str, object]) -> None:
    expected = sorted(spec.name for spec in signature.inputs)
    unknown = ", ".join(repr(name) for name in sorted(set(inputs) - set(expected)))
    if unknown:
        raise SignatureMismatch(f"inputs: expected {expected}, got {unknown} as well")


def _check_shape(spec: TensorSpec, array: Array, dims: dict[str, int]) -> None:
    """Compare dtype and shape; on the path of every request, so messages are made late."""
    shape = spec.shape
    if array.dtype != numpy_dtype(spec.dtype) or array.ndim != len(shape):
        raise _mismatch(spec, array)
    for dim, size in zip(shape, array.shape, strict=True):
        if type(dim) is int:
            if dim != size:
                raise _mismatch(spec, array)
        elif dims.setdefault(str(dim), size) != size:
            raise _mismatch(spec, array, f" with {dim}={dims[str(dim)]} as in the inputs before it")


def _mismatch(spec: TensorSpec, array: Array, which: str = "") -> SignatureMismatch:
    dtype = array.dtype.name if array.dtype.isnative else f"byte-swapped {array.dtype.name}"
    got = notation(dtype, array.shape)
    return SignatureMismatch(f"input {spec.name!r}: expected {spec}{which}, got {got}")


def check_range(spec: TensorSpec, array: Array) -> None:
    """Refuse integers outside the declared range.

    XLA clamps or drops indices that are out of range silently.
    """
    if (spec.minimum is None and spec.maximum is None) or not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if spec.minimum is not None and low < spec.minimum:
        raise SignatureMismatch(
            f"input {spec.name!r}: expected values >= {spec.minimum}, got {low}"
        )
    if spec.maximum is not None and high > spec.maximum:
        raise SignatureMismatch(
            f"input {spec.name!r}: expected values <= {spec.maximum}, got {high}"
        )
