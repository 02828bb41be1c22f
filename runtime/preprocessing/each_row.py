"""Rows that fail by themselves: those that fit are prepared, the others have an error each."""

from collections.abc import Sequence

import numpy as np

from runtime.errors import InvalidInput, without_frames
from runtime.preprocessing.preparation import Prepared, Preparer, RawRows
from runtime.preprocessing.resources import Resources
from runtime.tensors import Array


def prepare_each(preparer: Preparer, raw: RawRows, resources: Resources) -> Prepared:
    """Prepare raw rows, whatever is wrong with some of them.

    Where all fit it takes no longer than `Preparer.prepare`; else each row is tried alone first.

    Args:
      preparer: of the model.
      raw: rows that may fail by themselves.
      resources: what this may use.
    """
    try:
        return preparer.prepare(raw.inputs, raw.where, resources)
    except InvalidInput:
        pass
    errors: dict[int, InvalidInput] = {}
    for i in range(raw.rows):
        try:
            preparer.prepare(_chosen(raw, [i]), raw.where, resources)
        except InvalidInput as error:
            errors[i] = without_frames(error)
    good = [i for i in range(raw.rows) if i not in errors]
    prepared = preparer.prepare(_chosen(raw, good), raw.where, resources)
    order = tuple(tuple(good[row] for row in rows) for rows in prepared.order)
    return prepared._replace(order=order, errors=errors)


def _chosen(raw: RawRows, rows: list[int]) -> dict[str, Sequence[object] | Array]:
    """Return the inputs of some rows."""
    return {
        name: values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows]
        for name, values in raw.inputs.items()
    }
