"""Parquet and Arrow files, read a window at a time; needs the extra `parquet`."""

import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runtime.batch_prediction.blocks import Columns, InputError
from runtime.records.tensors import narrowed
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array


class ArrowReader:
    """Reads columns of a Parquet file, or of an Arrow IPC file or stream; see `NpzReader`.

    Args:
      path: of the file.
      name: as it is called in messages.
      wanted: names of the columns that are read, where they are there.
      signature: has the dtypes that columns are read as.
      raw: names of raw inputs; where tensors have one of them too, strings and binary are raw.
      mark: rows to pass over.

    Raises:
      InputError: it is no such file.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        wanted: frozenset[str],
        signature: Signature,
        raw: Collection[str] = (),
        mark: int = 0,
    ) -> None:
        self.mark = mark
        self.kinds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}  # rows are converted
        self._name = name
        self._specs = {spec.name: spec for spec in signature.inputs}
        self._wanted = wanted
        self._raw = raw
        self._left: pa.RecordBatch | None = None
        self._file = path.open("rb")
        try:
            self.names, self.total, self._batches = _opened(self._file, wanted)
            self._skip(mark)
        except (pa.ArrowException, OSError, ValueError) as error:
            self._file.close()
            raise InputError(f"{name}: expected Parquet or Arrow, got {_line(error)}") from None

    def read(self, rows: int, size: int) -> Columns | None:
        """Return the next rows; see `Reader`."""
        batch = self._next()
        if batch is None:
            return None
        one = max(1, batch.nbytes // batch.num_rows)
        count = min(batch.num_rows, rows, max(1, size // one))
        self._left = batch.slice(count) if count < batch.num_rows else None
        batch = batch.slice(0, count)
        refused: dict[int, str] = {}
        columns = {
            name: self._column(name, batch.column(i), refused)
            for i, name in enumerate(batch.schema.names)
        }
        first, self.mark = self.mark, self.mark + count
        return Columns(self._name, first, count, columns, refused)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _next(self) -> pa.RecordBatch | None:
        batch, self._left = self._left, None
        try:
            while batch is None or not batch.num_rows:
                batch = next(self._batches, None)
                if batch is None:
                    return None
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self._name}: expected Parquet or Arrow, got {_line(error)}"
            ) from None
        return batch

    def _skip(self, rows: int) -> None:
        while rows:
            batch = self._next()
            if batch is None:
                break
            if batch.num_rows > rows:
                self._left = batch.slice(rows)
            rows -= min(rows, batch.num_rows)

    def _column(self, name: str, values: Any, refused: dict[int, str]) -> Array | list[Any]:
        spec = self._specs.get(name)
        if spec is None or (name in self._raw and _has_bytes(values.type)):
            values_: list[Any] = values.to_pylist()
            return values_
        return _tensors(spec, values, refused)


def _has_bytes(kind: Any) -> bool:
    """Whether a column is of strings or binary, in whatever encoding."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_ = pa.types
    return bool(
        is_.is_string(kind)
        or is_.is_large_string(kind)
        or is_.is_string_view(kind)
        or is_.is_binary(kind)
        or is_.is_large_binary(kind)
        or is_.is_binary_view(kind)
        or is_.is_fixed_size_binary(kind)
    )


def _opened(file: Any, wanted: frozenset[str]) -> tuple[tuple[str, ...], int, Iterator[Any]]:
    """Return a file's columns, its rows (0 where they are not known), and its batches."""
    magic = file.read(6)
    file.seek(0)
    if magic[:4] == b"PAR1":
        parquet = pq.ParquetFile(file)
        names = tuple(parquet.schema_arrow.names)
        chosen = [name for name in names if name in wanted]
        batches = parquet.iter_batches(batch_size=1024, columns=chosen, use_threads=False)
        return names, parquet.metadata.num_rows, batches
    if magic == b"ARROW1":
        opened = pa.ipc.open_file(file)
        source = (opened.get_batch(i) for i in range(opened.num_record_batches))
    else:
        opened = pa.ipc.open_stream(file)
        source = iter(opened)
    names = tuple(opened.schema.names)
    chosen = [name for name in names if name in wanted]
    return names, 0, (batch.select(chosen) for batch in source)


def _tensors(spec: TensorSpec, values: Any, refused: dict[int, str]) -> Array | list[Any]:
    """Return a column of an input: an array where all rows have one shape, else a list of arrays.

    Numbers are converted as those of JSON are: doubles to narrower floats, integers where they fit.
    """
    shape = getattr(values.type, "shape", None)
    if isinstance(values.type, pa.ExtensionType):
        values = values.storage
    whole = _whole(values)
    if whole is not None:
        array = whole if shape is None else whole.reshape(len(whole), *shape)
        converted = narrowed(spec.dtype, array)
        if converted is not None:
            return converted
    cut = _ragged(spec, values)
    if cut is not None:
        return cut
    rows: list[Any] = []
    for i, value in enumerate(values):
        found = _row(spec, value, shape)
        if isinstance(found, str):
            refused.setdefault(i, f"input {spec.name!r}: expected {spec.dtype}, got {found}")
        rows.append(None if isinstance(found, str) else found)
    return rows


def _ragged(spec: TensorSpec, values: Any) -> list[Any] | None:
    """Return rows that are lists of several lengths; None where there is more to them."""
    kind = values.type
    if values.null_count or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    flat = _whole(values.flatten())
    numbers = None if flat is None or flat.ndim != 1 else narrowed(spec.dtype, flat)
    if numbers is None:
        return None
    offsets = values.offsets.to_numpy()
    ends = (offsets - offsets[0]).tolist()
    return [numbers[start:end] for start, end in itertools.pairwise(ends)]


def _whole(values: Any) -> Array | None:
    """Return all rows as one array; None where they differ in shape, or some are null."""
    shape = [len(values)]
    while True:
        if values.null_count:
            return None
        kind = values.type
        if pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
            values = values.flatten()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            if not len(values):
                return None
            lengths = np.diff(values.offsets.to_numpy())
            if (lengths != lengths[0]).any():
                return None
            shape.append(int(lengths[0]))
            values = values.flatten()
        elif pa.types.is_boolean(kind):
            return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return np.asarray(values.to_numpy()).reshape(shape)
        else:
            return None


def _row(spec: TensorSpec, value: Any, shape: Any) -> Array | str:
    """Return one row of an input, or what it is instead."""
    if not value.is_valid:
        return "null"
    inner = getattr(value, "values", None)
    if inner is None:
        one = _whole(pa.array([value.as_py()], value.type))
        found = None if one is None else one[0]
    else:
        found = _whole(inner)
    if found is None:
        return _kind(value)
    array = np.asarray(found if shape is None else found.reshape(shape))
    converted = narrowed(spec.dtype, array)
    return f"{array.dtype} with a value that does not fit" if converted is None else converted


def _kind(value: Any) -> str:
    kind = str(value.type)
    return f"null or ragged lists in {kind}" if "list" in kind else kind


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
