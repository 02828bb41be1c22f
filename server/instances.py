"""Vertex AI's `instances` to arrays, typed by the signature.

Values are never coerced; one that does not fit is an error that names its instance.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.signature import Signature, TensorSpec, notation
from runtime.tensors import Array, numpy_dtype
from server.errors import MalformedRequest
from server.typed import convert, kind_of, refuse


def arrays_from(instances: Sequence[Any], signature: Signature) -> dict[str, Array]:
    """Read instances into one array per input.

    An instance is an object of inputs by name; where there is one input only (masks
    apart), it can be that input's value itself. Rows that differ along a bucketed axis
    are padded to the longest, and a mask that was left out is made to match.

    Raises:
      SignatureMismatch: names the first instance and input that do not fit.
      MalformedRequest: instances are of different forms.
    """
    columns = _columns(instances, signature)
    dims = {dim for spec in signature.inputs for dim in spec.shape[1:] if isinstance(dim, str)}
    if dims:
        return _ragged(columns, signature)
    return {spec.name: _stack(spec, columns[spec.name]) for spec in signature.inputs}


def _columns(instances: Sequence[Any], signature: Signature) -> dict[str, list[Any]]:
    required = [spec.name for spec in signature.inputs if not spec.mask]
    names = [spec.name for spec in signature.inputs]
    if not any(isinstance(instance, dict) for instance in instances):
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
            raise MalformedRequest(f"instances: expected {name!r} in each or in none")
    return columns


def _check_keys(instance: Any, index: int, names: list[str], required: list[str]) -> None:
    where = f"instances[{index}]"
    if not isinstance(instance, dict):
        raise MalformedRequest(
            f"{where}: expected an object like the others, got {kind_of(instance)}"
        )
    unknown = next((key for key in instance if key not in names), None)
    if unknown is not None:
        raise MalformedRequest(f"{where}: expected {', '.join(map(repr, names))}, got {unknown!r}")
    missing = next((name for name in required if name not in instance), None)
    if missing is not None:
        raise MalformedRequest(f"{where}: expected {missing!r}, got none")


def _stack(spec: TensorSpec, values: list[Any]) -> Array:
    """Read rows of one shape, all at once where they are plain."""
    shape = spec.concrete(len(values), {})
    array = convert(spec.dtype, values) if values else np.empty(shape, numpy_dtype(spec.dtype))
    if array is not None and array.shape == shape:
        return array
    rows = [_row(spec, value, i) for i, value in enumerate(values)]
    return np.stack(rows)


def _ragged(columns: Mapping[str, list[Any]], signature: Signature) -> dict[str, Array]:
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
    return out


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
    return found


def row_sizes(instances: Sequence[Any], signature: Signature) -> list[dict[str, int]]:
    """Give the real size of each bucketed axis for each instance, to crop its answer."""
    columns = _columns(instances, signature)
    specs = [
        s for s in signature.inputs if not s.mask and any(isinstance(d, str) for d in s.shape[1:])
    ]
    return [
        {dim: size for spec in specs for dim, size in _measured(spec, columns[spec.name][i])}
        for i in range(len(instances))
    ]


def _measured(spec: TensorSpec, value: Any) -> list[tuple[str, int]]:
    found = []
    for dim in spec.shape[1:]:
        if isinstance(dim, str):
            found.append((dim, len(value)))
        value = value[0] if isinstance(value, list) and value else []
    return found


def _row(spec: TensorSpec, value: Any, index: int) -> Array:
    """Read one row, or say what is wrong with it."""
    where = f"instances[{index}]: input {spec.name!r}"
    shape = spec.shape[1:]
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
