"""Vertex AI's `instances` to arrays, typed by the signature.

Values are never coerced; one that does not fit is an error that names its instance.
"""

import base64
import binascii
import bisect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.inputs import Checked, Checker, check_size
from runtime.model import Model
from runtime.signature import Signature, TensorSpec, notation
from runtime.tensors import Array, numpy_dtype
from server.errors import MalformedRequest
from server.typed import convert, from_bytes, kind_of, refuse

_B64 = {"b64"}


class Rows(NamedTuple):
    """What instances hold.

    Attributes:
      arrays: one per input, a row for each instance.
      sizes: real size of each bucketed axis for each instance; empty where there are no axes.
    """

    arrays: dict[str, Array]
    sizes: list[dict[str, int]]


def checked_instances(
    instances: Sequence[Any], model: Model
) -> tuple[Checked, list[dict[str, int]]]:
    """Read instances and hold them against the signature.

    Returns:
      The inputs, and the real sizes of each instance; see `Rows`.

    Raises:
      SignatureMismatch: names the first instance and input that do not fit.
      MalformedRequest: instances are of different forms.
    """
    arrays, sizes = rows_from(instances, model.signature)
    try:
        return model.checker.check(arrays), sizes
    except SignatureMismatch as error:
        raise _blame(arrays, len(instances), model.checker) or error from None


def _blame(arrays: Mapping[str, Array], rows: int, checker: Checker) -> SignatureMismatch | None:
    """Find the first instance that the checker refuses, in as few looks as there are bits."""

    def refused(count: int, start: int = 0) -> SignatureMismatch | None:
        try:
            checker.check({name: array[start:count] for name, array in arrays.items()})
        except SignatureMismatch as error:
            return error
        return None

    count = bisect.bisect_left(range(1, rows + 1), True, key=lambda n: refused(n) is not None) + 1
    error = refused(count, count - 1)
    return error and SignatureMismatch(f"instances[{count - 1}]: {error}")


def rows_from(instances: Sequence[Any], signature: Signature) -> Rows:
    """Read instances into one array per input.

    An instance is an object of inputs by name; where there is one input only (masks
    apart), it can be that input's value itself. Rows that differ along a bucketed axis
    are padded to the longest, and a mask that was left out is made to match.

    Raises:
      SignatureMismatch: names the first instance and input that do not fit.
      MalformedRequest: instances are of different forms.
    """
    columns = _columns(instances, signature)
    if signature.axes:
        return _ragged(columns, signature)
    return Rows({spec.name: _stack(spec, columns[spec.name]) for spec in signature.inputs}, [])


def _columns(instances: Sequence[Any], signature: Signature) -> dict[str, list[Any]]:
    required = [spec.name for spec in signature.inputs if not spec.mask]
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and dict not in set(map(type, instances)):
        return {names[0]: list(instances)}
    if not any(map(_named, instances)):
        if len(required) != 1 and instances:
            raise MalformedRequest(
                f"instances[0]: expected an object with {', '.join(map(repr, required))}, got "
                f"{kind_of(instances[0])}"
            )
        return {name: list(instances) if name in required else [] for name in names}
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, instance in enumerate(instances):
        _check_keys(instance, i, names, required)
        for name, value in instance.items():
            columns[name].append(value)
    for name, values in columns.items():
        if values and len(values) != len(instances):
            first = next(i for i, instance in enumerate(instances) if name not in instance)
            raise MalformedRequest(f"instances[{first}]: expected {name!r} as in others, got none")
    return columns


def _named(instance: Any) -> bool:
    """Say whether an instance names its inputs, rather than being the value of the only one."""
    return type(instance) is dict and instance.keys() != _B64


def _check_keys(instance: Any, index: int, names: list[str], required: list[str]) -> None:
    where = f"instances[{index}]"
    if not isinstance(instance, dict):
        raise MalformedRequest(
            f"{where}: expected an object like the others, got {kind_of(instance)}"
        )
    unknown = next((key for key in instance if key not in names), None)
    if unknown is not None:
        raise MalformedRequest(
            f"{where}: expected {', '.join(map(repr, names))}, got {unknown[:100]!r}"
        )
    missing = next((name for name in required if name not in instance), None)
    if missing is not None:
        raise MalformedRequest(f"{where}: expected {missing!r}, got none")


def _stack(spec: TensorSpec, values: list[Any]) -> Array:
    """Read rows of one shape, all at once where they are plain."""
    array = convert(spec.dtype, values)
    if array is not None and array.shape[1:] == spec.shape[1:] and values:
        return array
    if not values:
        return np.empty(spec.concrete(0, {}), numpy_dtype(spec.dtype))
    rows = [_row(spec, value, i) for i, value in enumerate(values)]
    return np.stack(rows)


def _ragged(columns: Mapping[str, list[Any]], signature: Signature) -> Rows:
    """Read rows that may have different sizes along bucketed axes."""
    rows = {
        spec.name: [_row(spec, value, i) for i, value in enumerate(columns[spec.name])]
        for spec in signature.inputs
    }
    count = max(map(len, rows.values()))
    sizes = [_sizes(signature, {n: r[i] for n, r in rows.items() if r}, i) for i in range(count)]
    longest = {
        axis.name: max((s.get(axis.name, 0) for s in sizes), default=axis.sizes[0])
        for axis in signature.axes
    }
    out = {}
    for spec in signature.inputs:
        array = np.full(spec.concrete(count, longest), spec.pad, numpy_dtype(spec.dtype))
        for i in range(count):
            real: Any = (i, *(slice(size) for size in spec.concrete(1, sizes[i])[1:]))
            array[real] = rows[spec.name][i] if rows[spec.name] else 1
        out[spec.name] = array
    return Rows(out, sizes)


def _sizes(signature: Signature, rows: Mapping[str, Array], index: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for spec in signature.inputs:
        if spec.name not in rows:
            continue
        for dim, size in zip(spec.shape[1:], rows[spec.name].shape, strict=True):
            if isinstance(dim, str) and found.setdefault(dim, size) != size:
                raise SignatureMismatch(
                    f"instances[{index}]: input {spec.name!r}: expected {dim}={found[dim]} as in the "
                    f"inputs before it, got {size}"
                )
    for axis in signature.axes:  # now: one row of a million would be a million for all of them
        if axis.name in found:
            check_size(axis, found[axis.name], f"instances[{index}]: ")
    return found


def _row(spec: TensorSpec, value: Any, index: int) -> Array:
    """Read one row, or say what is wrong with it."""
    where = f"instances[{index}]: input {spec.name!r}"
    shape = spec.shape[1:]
    if type(value) is dict and value.keys() == _B64:
        return _decoded(spec, value["b64"], where)
    array = convert(spec.dtype, value)
    if array is None:
        raise refuse(spec.dtype, value, where)
    fits = array.ndim == len(shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        got = list(array.shape)
        raise SignatureMismatch(f"{where}: expected {notation(spec.dtype, shape)}, got {got}")
    return array


def _decoded(spec: TensorSpec, text: Any, where: str) -> Array:
    """Read `{"b64": "…"}`: a row's elements, little-endian, in row-major order.

    Of bucketed axes there can be one; it is as long as the bytes make it.
    """
    if not isinstance(text, str):
        raise SignatureMismatch(f"{where}: expected base64, got {kind_of(text)}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureMismatch(f"{where}: expected base64, got other characters") from None
    axes = [dim for dim in spec.shape[1:] if isinstance(dim, str)]
    if len(axes) > 1:
        raise SignatureMismatch(f"{where}: expected lists, since b64 cannot tell {axes} apart")
    unit = spec.row_bytes(dict.fromkeys(axes, 1))
    size = len(data) // unit if axes and unit else 0
    return from_bytes(spec.dtype, spec.concrete(1, dict.fromkeys(axes, size))[1:], data, where)
