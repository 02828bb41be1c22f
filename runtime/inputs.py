"""What a caller sends, held against the signature: names, dtypes, shapes, ranges.

Nothing is converted: a wrong dtype is an error, never a silent cast.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.signature import BATCH, Signature, TensorSpec, notation
from runtime.tensors import Array


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
    expected = {spec.name for spec in signature.inputs}
    unknown = sorted(set(inputs) - expected)
    if unknown:
        raise SignatureMismatch(
            f"inputs: expected {sorted(expected)}, got {', '.join(map(repr, unknown))} as well"
        )
    dims: dict[str, int] = {}
    arrays: list[Array | None] = []
    for spec in signature.inputs:
        value = inputs.get(spec.name)
        if value is None:
            if not spec.mask:
                raise SignatureMismatch(f"input {spec.name!r}: expected {spec}, got nothing")
            arrays.append(None)
            continue
        array = np.asarray(value)
        _check_shape(spec, array, dims)
        check_range(spec, array)
        arrays.append(array)
    for axis in signature.axes:
        if dims.get(axis.name, 0) > axis.sizes[-1]:
            raise SignatureMismatch(
                f"axis {axis.name!r}: expected at most {axis.sizes[-1]}, got {dims[axis.name]}"
            )
    sizes = tuple(dims.get(axis.name, axis.sizes[0]) for axis in signature.axes)
    return Checked(tuple(arrays), dims[BATCH], sizes)


def _check_shape(spec: TensorSpec, array: Array, dims: dict[str, int]) -> None:
    got = notation(array.dtype.name, array.shape)
    fits = array.dtype.name == spec.dtype and array.dtype.isnative
    fits = fits and array.ndim == len(spec.shape)
    if not fits or any(
        isinstance(dim, int) and dim != size
        for dim, size in zip(spec.shape, array.shape, strict=True)
    ):
        raise SignatureMismatch(f"input {spec.name!r}: expected {spec}, got {got}")
    for dim, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(dim, str) and dims.setdefault(dim, size) != size:
            raise SignatureMismatch(
                f"input {spec.name!r}: expected {spec} with {dim}={dims[dim]} as in the "
                f"inputs before it, got {got}"
            )


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
