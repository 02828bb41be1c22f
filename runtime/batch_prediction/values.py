"""Rows as Python programs have them to checked inputs, each accepted or refused by itself.

A row is a mapping of inputs by name: arrays, numbers, nested lists of these, texts, the bytes of
images; or, where there is one input only (masks apart), its value. Pure functions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.batch_prediction.rows import Read, Rows, merge_rows, sift
from runtime.errors import InvalidInput, MalformedRequest, SignatureMismatch
from runtime.model import Model
from runtime.records.arguments import exact_arrays
from runtime.tensors import Array

_RAW = (str, bytes, bytearray, memoryview)


def check_values(rows: Sequence[Any], model: Model) -> Rows:
    """Check rows that are values of Python.

    Rows whose values have the same types and shapes are checked together, wherever they stand.

    Args:
      rows: each a mapping, or the value of the only input.
      model: that they are for.
    """
    refused: dict[int, str] = {}
    groups: dict[object, list[tuple[int, Mapping[str, Any]]]] = {}
    for i, row in enumerate(rows):
        try:
            named = _named(row, model)
        except InvalidInput as error:
            refused[i] = str(error)
        else:
            key = tuple((name, _form(value)) for name, value in named.items())
            groups.setdefault(key, []).append((i, named))
    found = []
    for members in groups.values():
        own = [row for _, row in members]

        def read(at: Sequence[int], own: Sequence[Mapping[str, Any]] = own) -> Read:
            return _read([own[i] for i in at], model)

        found.append(([i for i, _ in members], sift(len(own), read)))
    return merge_rows(found, refused)


def _named(row: Any, model: Model) -> Mapping[str, Any]:
    """Return a row by the names of its inputs.

    Raises:
      MalformedRequest: it has no names, and there are several inputs.
    """
    if isinstance(row, Mapping):
        for name in row:
            if not isinstance(name, str):
                raise MalformedRequest(
                    f"expected names of inputs, got {name!r:.100} of type {type(name).__name__}"
                )
        return row
    names = _names(model, raw=isinstance(row, _RAW))
    if len(names) != 1:
        expected = ", ".join(map(repr, names))
        raise MalformedRequest(f"expected a dict of {expected}, got {type(row).__name__}")
    return {names[0]: row}


def _names(model: Model, *, raw: bool) -> list[str]:
    """Return the inputs that a row has to have, raw ones where it has those."""
    preparer = model.preparer
    if preparer is not None and raw:
        return [n for n in preparer.expected_names if n not in preparer.optional_names]
    return [spec.name for spec in model.signature.inputs if not spec.mask]


def _form(value: Any) -> object:
    """Return what the values of rows that are checked together have in common."""
    if isinstance(value, _RAW):
        return str if isinstance(value, str) else bytes
    if isinstance(value, list | tuple):
        return (list, len(value))
    if hasattr(value, "__array__"):
        array = _array(value)
        return (array.dtype, array.shape)
    return type(value)


def _read(rows: Sequence[Mapping[str, Any]], model: Model) -> Read:
    """Read rows of the same names and forms.

    Raises:
      InvalidInput: one of them does not fit.
    """
    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    preparer = model.preparer
    raw = {n: v for n, v in columns.items() if preparer is not None and preparer.is_raw(n, v)}
    tensors = {n: v for n, v in columns.items() if n not in raw}
    missing = next((n for n, v in tensors.items() if isinstance(v, list) and v[0] is None), None)
    if missing is not None:
        raise SignatureMismatch(f"input {missing!r}: expected a value, got None")
    exact: Mapping[str, Any] = exact_arrays(model.signature, tensors)
    if preparer is None or not raw:
        checked = model.checker.check(exact)
        return [checked], [range(checked.rows)]
    prepared = preparer.prepare({**raw, **exact}, _where)
    return prepared.parts, prepared.order


def _column(values: list[Any]) -> list[Any] | Array:
    """Return the values of an input, in one array where they are arrays."""
    first = values[0]
    if isinstance(first, (list, tuple, *_RAW)) or not hasattr(first, "__array__"):
        return values
    return np.stack([_array(value) for value in values])


def _array(value: Any) -> Array:
    return value if type(value) is np.ndarray else np.asarray(value)


def _where(name: str, _: int) -> str:
    """Name a raw input in a message about one row."""
    return f"input {name!r}"
