"""What a caller sends, checked with the signature: names, dtypes, shapes, ranges.

Nothing is converted: a wrong dtype is an error, never a silent cast.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runtime.errors import SignatureMismatch, nearest
from runtime.signature import BATCH, Axis, Signature, TensorSpec, notation
from runtime.tensors import Array, numpy_dtype


class Checked(NamedTuple):
    """Inputs that fit the signature.

    Attributes:
      arrays: in the signature's order; None for a mask that was left out.
      rows: the size of the batch axis.
      sizes: the real size of each bucketed axis, in the signature's order.
    """

    arrays: tuple[Array | None, ...]
    rows: int
    sizes: tuple[int, ...]

    def cut(self, start: int, end: int) -> "Checked":
        """Return the rows from `start` up to `end`, as views; the same object if these are all."""
        if end - start == self.rows:
            return self
        arrays = tuple([None if a is None else a[start:end] for a in self.arrays])
        return Checked(arrays, end - start, self.sizes)


class Checker:
    """Holds inputs against a signature; made once, called for every request.

    What can be looked up beforehand is, since after a program has run the caches are cold
    and every line of Python costs several times what a tight loop shows.

    Args:
      signature: of the bundle.
      raw_names: names of the raw inputs that callers can send instead of tensors, for messages.
    """

    def __init__(self, signature: Signature, raw_names: Sequence[str] = ()) -> None:
        self._signature = signature
        self._raw_names = raw_names
        self._inputs = tuple(
            (spec.name, numpy_dtype(spec.dtype), _fixed(spec), _range_of(spec), spec)
            for spec in signature.inputs
        )
        # Known once all inputs have been seen.
        self._lengths = tuple(
            (i, spec, spec.maximum)
            for i, spec in enumerate(signature.inputs)
            if isinstance(spec.maximum, str)
        )

    def check(self, inputs: Mapping[str, object]) -> Checked:
        """Check inputs against the signature.

        Args:
          inputs: name to array. Masks may be missing.

        Raises:
          SignatureMismatch: the first thing that does not fit, in the signature's order.
        """
        dims: dict[str, int] = {}
        arrays: list[Array | None] = []
        taken = 0
        for name, dtype, fixed, legal, spec in self._inputs:
            value = inputs.get(name)
            if value is None:
                if not spec.mask:
                    _refuse_unknown(self._signature, inputs, self._raw_names)
                    raise SignatureMismatch(f"input {name!r}: expected {spec}, got nothing")
                arrays.append(None)
                continue
            array = value if type(value) is np.ndarray else _as_array(spec, value)
            if array.dtype != dtype:
                raise _mismatch(spec, array)
            if fixed is None or array.shape[1:] != fixed or not array.ndim:
                _check_shape(spec, array, dims)
            elif dims.setdefault(BATCH, array.shape[0]) != array.shape[0]:
                raise _other_size(spec, array, BATCH, dims[BATCH])
            if legal is not None:
                _check_range(spec, array, *legal)
            arrays.append(array)
            taken += 1
        if len(inputs) > taken:
            _refuse_unknown(self._signature, inputs, self._raw_names)
        sizes = self._sizes(dims) if self._signature.axes else ()
        if self._lengths:
            self._check_lengths(arrays, dims)
        return Checked(tuple(arrays), dims[BATCH], sizes)

    def _check_lengths(self, arrays: Sequence[Array | None], dims: Mapping[str, int]) -> None:
        for i, spec, axis in self._lengths:
            lengths = arrays[i]
            if lengths is not None:
                _check_range(spec, lengths, spec.minimum, dims[axis], axis)

    def _sizes(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        for axis in self._signature.axes:
            if axis.name in dims:
                check_size(axis, dims[axis.name])
        return tuple(dims.get(axis.name, axis.sizes[0]) for axis in self._signature.axes)


def check_size(axis: Axis, size: int, where: str = "") -> None:
    """Refuse a size of a bucketed axis that no program takes.

    Args:
      axis: of the signature.
      size: of an input, or of one row of it.
      where: what to call it in the message, such as `instances[3]: `.

    Raises:
      SignatureMismatch: it is longer than the largest bucket, or shorter than the model was
        proven for.
    """
    if size > axis.sizes[-1]:
        raise SignatureMismatch(
            f"{where}axis {axis.name!r}: expected at most {axis.sizes[-1]}, got {size}"
        )
    if size < axis.minimum:
        raise SignatureMismatch(
            f"{where}axis {axis.name!r}: expected at least {axis.minimum}, got {size}"
        )


def _range_of(spec: TensorSpec) -> tuple[int | None, int | None] | None:
    """Return the smallest and largest legal value, or None if there are none or an axis decides."""
    if isinstance(spec.maximum, str) or (spec.minimum is None and spec.maximum is None):
        return None
    return spec.minimum, spec.maximum


def _fixed(spec: TensorSpec) -> tuple[int, ...] | None:
    """Return the shape behind the batch, or None if it has bucketed axes."""
    fixed = tuple(dim for dim in spec.shape[1:] if isinstance(dim, int))
    return fixed if len(fixed) == len(spec.shape) - 1 else None


def _as_array(spec: TensorSpec, value: object) -> Array:
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        raise SignatureMismatch(
            f"input {spec.name!r}: expected {spec}, got a {type(value).__name__} that is no array"
        ) from None


def _refuse_unknown(
    signature: Signature, inputs: Mapping[str, object], raw_names: Sequence[str]
) -> None:
    expected = sorted({*raw_names, *(spec.name for spec in signature.inputs)})
    unknown = sorted({str(name) for name in inputs} - set(expected))
    if not unknown:
        return
    missing = [s.name for s in signature.inputs if s.name not in inputs and not s.mask]
    got = ", ".join(map(repr, unknown))
    got += f" and no {', '.join(map(repr, missing))}" if missing else " as well"
    hint = nearest(unknown[0], expected)
    raise SignatureMismatch(f"inputs: expected {expected}, got {got}{hint}")


def _check_shape(spec: TensorSpec, array: Array, dims: dict[str, int]) -> None:
    if array.ndim != len(spec.shape):
        raise _mismatch(spec, array)
    for dim, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                raise _mismatch(spec, array)
        elif dims.setdefault(dim, size) != size:
            raise _other_size(spec, array, dim, dims[dim])


def _other_size(spec: TensorSpec, array: Array, dim: str, size: int) -> SignatureMismatch:
    return _mismatch(spec, array, f" with {dim}={size} as in the inputs before it")


def _mismatch(spec: TensorSpec, array: Array, which: str = "") -> SignatureMismatch:
    dtype = array.dtype.name if array.dtype.isnative else f"byte-swapped {array.dtype.name}"
    got = notation(dtype, array.shape)
    return SignatureMismatch(f"input {spec.name!r}: expected {spec}{which}, got {got}")


_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def _check_range(
    spec: TensorSpec, array: Array, minimum: int | None, maximum: int | None, axis: str = ""
) -> None:
    """Refuse integers outside the declared range.

    XLA clamps or drops indices that are out of range silently.
    """
    if not array.size:
        return
    if minimum == 0 and maximum is not None:
        # One pass checks both ends: seen as unsigned, a negative number is beyond any maximum.
        largest = np.maximum.reduce(array.view(_UNSIGNED[array.itemsize]), axis=None)
        if largest <= maximum:
            return
    low, high = int(array.min()), int(array.max())
    if minimum is not None and low < minimum:
        raise SignatureMismatch(f"input {spec.name!r}: expected values >= {minimum}, got {low}")
    if maximum is not None and high > maximum:
        why = f", the size of axis {axis!r}" if axis else ""
        raise SignatureMismatch(
            f"input {spec.name!r}: expected values <= {maximum}{why}, got {high}"
        )
