"""Columns to Parquet and Arrow files; needs the extra `parquet`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runtime.tensors import Array


def write_table(path: Path, format_: str, table: Mapping[str, Any]) -> None:
    """Write a table.

    Args:
      path: of the file, which is made.
      format_: parquet or arrow.
      table: name to an array [n, ...], or to a list of n of Python's own values or arrays.
    """
    columns = {name: _column(values) for name, values in table.items()}
    made = pa.table(columns)
    with path.open("wb") as file:  # whose errors have the system's own reason, as Arrow's have not
        if format_ == "parquet":
            pq.write_table(made, file)
            return
        with pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)


def _column(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return _tensors(values)
    if any(isinstance(value, np.ndarray) for value in values):
        return pa.array([_narrow(value).tolist() for value in values])
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of several types
        return pa.array([json.dumps(value, ensure_ascii=False) for value in values])


def _tensors(array: Array) -> Any:
    """Return an array as a column: of numbers, or of lists of one length, as deep as it has axes."""
    array = _narrow(array)
    column: Any = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _narrow(array: Array) -> Array:
    """Return bfloat16 and float8, which Arrow has not, as float32."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array
