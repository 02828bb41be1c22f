"""Columns of npz and safetensors files: arrays whose first axis is the rows.

Both are read a window at a time, whether an npz is compressed or not.
"""

import contextlib
import math
import mmap
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from runtime.batch_prediction.blocks import Columns, InputError
from runtime.errors import IntegrityError
from runtime.tensors import Array, read_tensors

_FORMATS = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}


class _Member:
    """One array of an npz file, read from its first row on.

    Args:
      stream: of the member.
      where: names it in messages.
    """

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream = stream
        self._where = where
        try:
            version = np.lib.format.read_magic(stream)
            read_header = getattr(np.lib.format, _FORMATS[version])
            shape, fortran, dtype = read_header(stream)
        except (ValueError, KeyError) as error:
            raise InputError(f"{where}: expected an array, got {_reason(error)}") from None
        if dtype.hasobject:
            raise InputError(
                f"{where}: expected numbers or text, got Python objects, which only pickle reads"
            )
        if fortran and len(shape) > 1:
            raise InputError(
                f"{where}: expected C order, got Fortran order; save np.ascontiguousarray of it"
            )
        if not shape:
            raise InputError(f"{where}: expected an array of rows, got a single value")
        self.rows, self.shape, self.dtype = shape[0], shape[1:], dtype
        self.row_bytes = math.prod(self.shape) * dtype.itemsize

    def read(self, rows: int) -> Array:
        """Return the next rows."""
        size = rows * self.row_bytes
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise InputError(
                    f"{self._where}: expected {self.rows} rows, got fewer; it is cut off"
                )
            view = view[count:]
        array = np.frombuffer(data, self.dtype).reshape(rows, *self.shape)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))

    def skip(self, rows: int) -> None:
        """Pass over rows."""
        left = rows * self.row_bytes
        while left:
            left -= len(self._stream.read(min(left, 1 << 20))) or left


class NpzReader:
    """Reads columns of an npz file; see `Reader`.

    Attributes:
      names: of all columns.
      kinds: dtype and shape of those that are read.

    Args:
      path: of the file.
      name: as it is called in messages.
      wanted: names of the columns that are read, where they are there.
      mark: rows to pass over.

    Raises:
      InputError: it is no npz file, or its columns differ in length.
    """

    def __init__(self, path: Path, name: str, wanted: frozenset[str], mark: int = 0) -> None:
        self.mark = mark
        self._name = name
        self._stack = contextlib.ExitStack()
        with _named(name, "npz"), contextlib.ExitStack() as stack:
            file = stack.enter_context(zipfile.ZipFile(path))
            self.names = tuple(entry.removesuffix(".npy") for entry in file.namelist())
            self._members = {
                member: _Member(
                    stack.enter_context(file.open(f"{member}.npy")), f"{name}: {member!r}"
                )
                for member in self.names
                if member in wanted
            }
            self.kinds = {n: (m.dtype, (m.rows, *m.shape)) for n, m in self._members.items()}
            self.total = _same_rows(name, {n: m.rows for n, m in self._members.items()})
            for member in self._members.values():
                member.skip(mark)
            self._stack = stack.pop_all()

    def read(self, rows: int, size: int) -> Columns | None:
        """Return the next rows; see `Reader`."""
        one = sum(member.row_bytes for member in self._members.values())
        count = _count(self.total - self.mark, rows, size, one)
        if not count:
            return None
        with _named(self._name, "npz"):
            columns = {name: member.read(count) for name, member in self._members.items()}
        first, self.mark = self.mark, self.mark + count
        return Columns(self._name, first, count, columns)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


class SafetensorsReader:
    """Reads columns of a safetensors file; see `NpzReader`."""

    def __init__(self, path: Path, name: str, wanted: frozenset[str], mark: int = 0) -> None:
        self.mark = mark
        self._name = name
        with path.open("rb") as file:
            try:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                arrays = read_tensors(path, buffer, name)
            except (ValueError, IntegrityError) as error:
                raise InputError(
                    str(error)
                    if isinstance(error, IntegrityError)
                    else f"{name}: expected safetensors, got an empty file"
                ) from None
        self.names = tuple(arrays)
        self._arrays = {n: array for n, array in arrays.items() if n in wanted}
        for column, array in self._arrays.items():
            if not array.ndim:
                raise InputError(
                    f"{name}: {column!r}: expected an array of rows, got a single value"
                )
        self.kinds = {n: (array.dtype, array.shape) for n, array in self._arrays.items()}
        self.total = _same_rows(name, {n: len(array) for n, array in self._arrays.items()})

    def read(self, rows: int, size: int) -> Columns | None:
        """Return the next rows; see `Reader`."""
        one = sum(a.nbytes // max(1, len(a)) for a in self._arrays.values())
        count = _count(self.total - self.mark, rows, size, one)
        if not count:
            return None
        first, self.mark = self.mark, self.mark + count
        # A copy: pages of a file that is written to meanwhile would change, and cut off end the process.
        columns = {n: a[first : self.mark].copy() for n, a in self._arrays.items()}
        return Columns(self._name, first, count, columns)

    def close(self) -> None:
        """Let the mapping go."""
        self._arrays = {}


def _reason(error: Exception) -> str:
    """Return why a header cannot be read; a KeyError says no more than which version it has."""
    return "a version that is not read" if isinstance(error, KeyError) else str(error)


def _count(left: int, rows: int, size: int, one: int) -> int:
    """Return how many rows are read: at least one where any is left."""
    return min(left, rows, max(1, size // max(1, one)))


def _same_rows(name: str, rows: Mapping[str, int]) -> int:
    counts = sorted(set(rows.values()))
    if len(counts) > 1:
        listed = ", ".join(f"{column!r} {count}" for column, count in rows.items())
        raise InputError(f"{name}: expected columns of as many rows, got {listed}")
    return counts[0] if counts else 0


@contextlib.contextmanager
def _named(name: str, kind: str) -> Iterator[Any]:
    """Turn what reading a damaged file raises into an InputError."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        NotImplementedError,  # of zipfile: a compression that it does not read
        KeyError,
    ) as error:
        raise InputError(f"{name}: expected {kind}, got {error}") from None
