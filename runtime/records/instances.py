"""Vertex AI's `instances` to arrays, typed by the signature.

Values are never coerced; one that does not fit is an error that names its instance.
"""

import bisect
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import MalformedRequest, SignatureMismatch, nearest
from runtime.inputs import Checked, Checker
from runtime.records.tensors import convert, from_base64, from_bytes, kind_of, refuse
from runtime.signature import Signature, TensorSpec, notation
from runtime.tensors import Array, numpy_dtype

if TYPE_CHECKING:
    from runtime.model import Model

_B64 = {"b64"}


def read_rows(instances: Sequence[Any], model: "Model", *, booleans: bool = True) -> list[Checked]:
    """Read instances and hold them against the signature.

    An instance is an object of inputs by name, or an array of them in the signature's order, as the
    columns of a table are; where there is one input only (masks apart), it can be that input's value
    itself. Masks can be left out, by all or by none.

    Args:
      instances: as JSON has them.
      model: with the signature.
      booleans: whether there can be any among their elements; see `convert`.

    Returns:
      All rows together if they have the same sizes, else each by itself.

    Raises:
      SignatureMismatch: names the first instance and input that do not fit.
      MalformedRequest: instances are of different forms.
    """
    preparer = model.preparer
    columns = _columns(instances, model.signature, preparer.raw_names if preparer else ())
    arrays: dict[str, Array] = {}
    for spec in model.signature.inputs:
        values = columns[spec.name]
        if values or not instances:
            array = _stack(spec, values, model.signature, booleans=booleans)
            if array is None:
                return _read_each(columns, len(instances), model)
            arrays[spec.name] = array
    try:
        return [model.checker.check(arrays)]
    except SignatureMismatch as error:
        raise _blame(arrays, len(instances), model.checker) or error from None


def read_column(spec: TensorSpec, values: list[Any], signature: Signature) -> Array:
    """Return the rows of one input, which all have the same shape.

    Args:
      spec: of the input.
      values: as JSON has them, one for each row.
      signature: that it is of.

    Raises:
      SignatureMismatch: names the first instance that does not fit.
    """
    array = _stack(spec, values, signature, booleans=True)
    if array is not None:
        return array
    rows = [_row(spec, value, i) for i, value in enumerate(values)]
    other = next((i for i, row in enumerate(rows) if row.shape != rows[0].shape), None)
    if other is not None:
        raise SignatureMismatch(
            f"instances[{other}]: input {spec.name!r}: expected the shape {list(rows[0].shape)} of "
            f"the others, got {list(rows[other].shape)}"
        )
    return np.stack(rows)


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


def _stack(
    spec: TensorSpec, values: list[Any], signature: Signature, *, booleans: bool
) -> Array | None:
    """Read the rows of one input all at once; None if they must be looked at one by one."""
    if not values:
        sizes = {axis.name: axis.sizes[0] for axis in signature.axes}
        return np.empty(spec.concrete(0, sizes), numpy_dtype(spec.dtype))
    array = convert(spec.dtype, values, booleans=booleans)
    return array if array is not None and _fits(spec, array.shape[1:]) else None


def _read_each(columns: Mapping[str, list[Any]], count: int, model: "Model") -> list[Checked]:
    """Read rows one by one: they have several sizes, or are not plain lists, or wrong."""
    rows = {
        spec.name: [_row(spec, value, i) for i, value in enumerate(columns[spec.name])]
        for spec in model.signature.inputs
    }
    given = {name: column for name, column in rows.items() if column}
    if all(len({row.shape for row in column}) == 1 for column in given.values()):
        together = {name: np.stack(column) for name, column in given.items()}
        with contextlib.suppress(SignatureMismatch):
            return [model.checker.check(together)]
    checked = []
    for i in range(count):
        try:
            checked.append(model.checker.check({n: column[i][None] for n, column in given.items()}))
        except SignatureMismatch as error:
            raise SignatureMismatch(f"instances[{i}]: {error}") from None
    return checked


def _columns(
    instances: Sequence[Any], signature: Signature, raw_names: Sequence[str]
) -> dict[str, list[Any]]:
    required = [spec.name for spec in signature.inputs if not spec.mask]
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and dict not in set(map(type, instances)):
        scalar = len(signature.inputs[0].shape) == 1
        return {names[0]: [_only(v) for v in instances] if scalar else list(instances)}
    if not any(map(_named, instances)):
        if len(required) != 1 and instances:
            return _by_position(instances, names, required)
        scalars = {spec.name for spec in signature.inputs if len(spec.shape) == 1}
        return {
            name: [_only(v) if name in scalars else v for v in instances]
            if name in required
            else []
            for name in names
        }
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, instance in enumerate(instances):
        _check_keys(instance, i, names, required, raw_names)
        for name, value in instance.items():
            columns[name].append(value)
    for name, values in columns.items():
        if values and len(values) != len(instances):
            first = next(i for i, instance in enumerate(instances) if name not in instance)
            raise MalformedRequest(f"instances[{first}]: expected {name!r} as in others, got none")
    return columns


def _only(value: Any) -> Any:
    """Return the value of a row that has one column, or else the value of a scalar."""
    return value[0] if type(value) is list and len(value) == 1 else value


def _by_position(
    instances: Sequence[Any], names: list[str], required: list[str]
) -> dict[str, list[Any]]:
    """Return the columns of instances that are arrays of the inputs, with masks or without."""
    first = instances[0]
    given = names if type(first) is list and len(first) == len(names) else required
    for i, instance in enumerate(instances):
        if type(instance) is not list or len(instance) != len(given):
            got = f"{len(instance)} values" if type(instance) is list else kind_of(instance)
            raise MalformedRequest(
                f"instances[{i}]: expected {', '.join(map(repr, given))}, in an object or in an array "
                f"of {len(given)}, got {got}"
            )
    columns = {
        name: list(column) for name, column in zip(given, zip(*instances, strict=True), strict=True)
    }
    return {name: columns.get(name, []) for name in names}


def _named(instance: Any) -> bool:
    """Return whether an instance names its inputs, rather than being the value of the only one."""
    return type(instance) is dict and instance.keys() != _B64


def _check_keys(
    instance: Any, index: int, names: list[str], required: list[str], raw_names: Sequence[str]
) -> None:
    where = f"instances[{index}]"
    if not isinstance(instance, dict):
        raise MalformedRequest(
            f"{where}: expected an object like the others, got {kind_of(instance)}"
        )
    unknown = next((key for key in instance if key not in names), None)
    if unknown is not None:
        raw = [name for name in raw_names if name not in names]
        expected = f"{', '.join(map(repr, raw))}, or " if raw else ""
        expected += ", ".join(map(repr, names))
        hint = nearest(unknown[:100], [*raw, *names]) if raw else ""
        raise MalformedRequest(f"{where}: expected {expected}, got {unknown[:100]!r}{hint}")
    missing = next((name for name in required if name not in instance), None)
    if missing is not None:
        raise MalformedRequest(f"{where}: expected {missing!r}, got none")


def _row(spec: TensorSpec, value: Any, index: int) -> Array:
    """Read one row, or say what is wrong with it."""
    where = f"instances[{index}]: input {spec.name!r}"
    shape = spec.shape[1:]
    if type(value) is dict and value.keys() == _B64:
        return _decoded(spec, value["b64"], where)
    array = convert(spec.dtype, value)
    if array is None:
        raise refuse(spec.dtype, value, where)
    if not _fits(spec, array.shape):
        got = list(array.shape)
        raise SignatureMismatch(f"{where}: expected {notation(spec.dtype, shape)}, got {got}")
    return array


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    """Return whether a row has the shape, bucketed axes apart."""
    wanted = spec.shape[1:]
    return shape == wanted or (
        len(shape) == len(wanted)
        and all(isinstance(d, str) or d == s for d, s in zip(wanted, shape, strict=True))
    )


def _decoded(spec: TensorSpec, text: Any, where: str) -> Array:
    """Read `{"b64": "…"}`: a row's elements, little-endian, in row-major order.

    Of bucketed axes there can be one; it is as long as the bytes make it.
    """
    if not isinstance(text, str):
        raise SignatureMismatch(f"{where}: expected base64, got {kind_of(text)}")
    data = from_base64(text, where)
    axes = [dim for dim in spec.shape[1:] if isinstance(dim, str)]
    if len(axes) > 1:
        raise SignatureMismatch(
            f"{where}: expected lists, since b64 does not say which of {axes} is which"
        )
    unit = spec.row_bytes(dict.fromkeys(axes, 1))
    size = len(data) // unit if axes and unit else 0
    return from_bytes(spec.dtype, spec.concrete(1, dict.fromkeys(axes, size))[1:], data, where)
