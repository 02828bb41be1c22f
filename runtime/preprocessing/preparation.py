"""Raw rows to checked inputs: every stage of a bundle, and tensors beside them as they are.

A row's length bucket follows from its own text alone, so that its answer does not depend on what
else is asked at the same time.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from runtime.buckets import pick
from runtime.bundle import Bundle
from runtime.errors import InvalidInput, SignatureMismatch, nearest
from runtime.inputs import Checked, Checker
from runtime.preprocessing.images import ImageReader
from runtime.preprocessing.readers import Item, Reader, Where, in_column
from runtime.preprocessing.resources import UNLIMITED, Resources
from runtime.preprocessing.texts import TextReader
from runtime.raw_inputs import Stage
from runtime.signature import Signature
from runtime.tensors import Array

# What is no array of numbers, and neither a column of raw values by itself.
_RAW = (bytes, bytearray, memoryview, str)


class RawRows(NamedTuple):
    """Rows that have raw inputs, not prepared yet.

    Attributes:
      inputs: as `Preparer.prepare` takes them.
      rows: of these.
      where: names a row of a raw input in messages.
      each: whether a row that does not fit fails by itself; else all fail with it.
    """

    inputs: Mapping[str, Sequence[object] | Array]
    rows: int
    where: Where = in_column
    each: bool = False


class Prepared(NamedTuple):
    """Raw rows as checked inputs.

    Attributes:
      parts: rows of the same length bucket together.
      order: for each part, which rows these are, counted from 0.
      rows: in all parts.
      tokens: of all rows, padding apart.
      truncated: rows of which a text was cut off.
      errors: of rows that failed by themselves, which are in no part, by their number.
    """

    parts: tuple[Checked, ...]
    order: tuple[tuple[int, ...], ...]
    rows: int
    tokens: int
    truncated: int
    errors: Mapping[int, InvalidInput] = MappingProxyType({})


class Preparer:
    """All stages of a bundle. May be called from any number of threads at once.

    Args:
      readers: one for each stage.
      signature: of the programs.
      checker: of this signature.

    Attributes:
      readers: likewise.
      raw_names: the names of the raw inputs.
      expected_names: these, and behind them those of the inputs that no stage makes.
      optional_names: those of them that may be left out: masks.
      kinds: of each raw input: text or image.
      max_marks: commas and brackets that a row's raw inputs can have in JSON.
      row_bytes: of a row's arrays that its raw inputs do not account for.
    """

    def __init__(self, readers: Sequence[Reader], signature: Signature, checker: Checker) -> None:
        self.readers = tuple(readers)
        self._signature = signature
        self._checker = checker
        self.raw_names = tuple(name for r in self.readers for name in r.stage.raw_names)
        self.kinds = {name: r.stage.kind for r in self.readers for name in r.stage.raw_names}
        self.max_marks = sum(reader.stage.max_marks for reader in self.readers)
        self.row_bytes = sum(reader.row_bytes for reader in self.readers)
        self._shared = {name for r in self.readers for name in r.stage.shared_names}
        self._made = {name for r in self.readers for name in r.stage.made}
        others = [spec for spec in signature.inputs if spec.name not in self._made]
        self.expected_names = (*self.raw_names, *(spec.name for spec in others))
        self.optional_names = frozenset(spec.name for spec in others if spec.mask)
        axes = {axis.name for axis in signature.axes}
        # An output of the text's own length is cut to it; for others rows of a bucket go together.
        self._exact = any(axes.intersection(map(str, s.shape)) for s in signature.outputs)

    @property
    def panics(self) -> int:
        """Return the number of calls in which a library's own code failed on what callers sent."""
        return sum(reader.panics for reader in self.readers)

    def takes(self, inputs: Mapping[str, object]) -> bool:
        """Whether there are raw inputs among these columns, rather than tensors only."""
        return any(self.is_raw(name, values) for name, values in inputs.items())

    def is_raw(self, name: str, values: object) -> bool:
        """Whether a column is of raw values: by its name, or its type where a tensor has that too."""
        if name not in self._shared:
            return name in self.raw_names
        if isinstance(values, np.ndarray):
            return values.dtype.kind in "OSU"
        if not isinstance(values, list | tuple):
            return isinstance(values, _RAW)
        return any(not _is_numeric(value) for value in values[:1])

    def is_raw_json(self, name: str, value: object) -> bool:
        """Whether a value of JSON is a raw one, in the same way: a tensor has no strings or objects."""
        return name in self.raw_names and (
            name not in self._shared or isinstance(value, str | dict)
        )

    def prepare(
        self,
        inputs: Mapping[str, Sequence[object] | Array],
        where: Where = in_column,
        resources: Resources = UNLIMITED,
    ) -> Prepared:
        """Make tensors of raw rows, and check all inputs.

        Args:
          inputs: raw input to its texts, and the inputs that no stage makes, by name; all with the
            same number of rows.
          where: names a row of a raw input in messages.
          resources: what this may use.

        Raises:
          SignatureMismatch: something does not fit; names the first such row.
        """
        columns, tensors, rows = self._sorted(inputs)
        found = self.read(columns, where, resources)
        sizes = self._sizes(found, rows)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, own in enumerate(sizes):
            groups.setdefault(own, []).append(i)
        if not rows:
            groups[tuple(axis.sizes[0] for axis in self._signature.axes)] = []
        parts = [self._part(found, tensors, key, members) for key, members in groups.items()]
        tokens = sum(row.tokens for _, rows_of in found for row in rows_of)
        cut = {i for _, rows_of in found for i, row in enumerate(rows_of) if row.truncated}
        return Prepared(tuple(parts), tuple(map(tuple, groups.values())), rows, tokens, len(cut))

    def read(
        self,
        columns: Mapping[str, Sequence[object]],
        where: Where = in_column,
        resources: Resources = UNLIMITED,
    ) -> list["_Read"]:
        """Return for each stage, of which there are raw inputs, an item for each row.

        Args:
          columns: raw input to its values.
          where: as for `prepare`.
          resources: likewise.

        Raises:
          SignatureMismatch: the first row that does not fit.
        """
        return [
            _Read(reader, reader.read(columns, where, resources))
            for reader in self.readers
            if reader.stage.raw_names[0] in columns
        ]

    def _part(
        self,
        found: Sequence["_Read"],
        tensors: Mapping[str, Array],
        sizes: tuple[int, ...],
        members: list[int],
    ) -> Checked:
        """Return the checked inputs of some rows, which have the same sizes."""
        named = dict(zip((axis.name for axis in self._signature.axes), sizes, strict=True))
        arrays = {name: array[members] for name, array in tensors.items()}
        for reader, rows_of in found:
            size = 0 if reader.axis is None else named[reader.axis]
            arrays |= reader.lay_out([rows_of[i] for i in members], size)
        return self._checker.check(arrays)

    def _sizes(self, found: Sequence["_Read"], rows: int) -> list[tuple[int, ...]]:
        """Return the sizes of the bucketed axes, for each row."""
        sizes = []
        for i in range(rows):
            real = {axis.name: axis.minimum for axis in self._signature.axes}
            for reader, rows_of in found:
                if reader.axis is not None:
                    real[reader.axis] = max(real[reader.axis], rows_of[i].size)
            sizes.append(
                tuple(
                    real[axis.name] if self._exact else pick(real[axis.name], axis.sizes) or 0
                    for axis in self._signature.axes
                )
            )
        return sizes

    def _sorted(
        self, inputs: Mapping[str, Sequence[object] | Array]
    ) -> tuple[dict[str, Sequence[object]], dict[str, Array], int]:
        """Return the raw columns, the tensors beside them, and the number of rows."""
        self._expect_names(inputs)
        columns = {
            name: _column(name, inputs[name], self.kinds[name])
            for name in self.raw_names
            if self.is_raw(name, inputs[name])
        }
        tensors = {n: np.asarray(value) for n, value in inputs.items() if n not in columns}
        counts = {name: len(values) for name, values in columns.items()}
        counts |= {name: len(array) if array.ndim else 0 for name, array in tensors.items()}
        first = next(iter(columns))
        rows = counts[first]
        for name, got in counts.items():
            if got != rows:
                raise SignatureMismatch(
                    f"input {name!r}: expected {rows} rows as of {first!r}, got {got}"
                )
        return columns, tensors, rows

    def _expect_names(self, inputs: Mapping[str, object]) -> None:
        expected = list(self.expected_names)
        for name in inputs:
            if name in self._made and name not in self._shared:
                raise SignatureMismatch(
                    f"inputs: expected {name!r}, or {self.raw_names[0]!r} that it is made of, got both"
                )
            if name not in expected:
                raise SignatureMismatch(
                    f"inputs: expected {expected}, got {name!r} as well{nearest(name, expected)}"
                )
        for name in expected:
            if name not in inputs and name not in self.optional_names:
                raise SignatureMismatch(f"input {name!r}: expected one row for each text, got none")


class _Read(NamedTuple):
    """What one stage made of the rows of a request.

    Attributes:
      reader: of the stage.
      rows: an item for each.
    """

    reader: Reader
    rows: Sequence[Item]


def _is_numeric(value: object) -> bool:
    """Whether an element of a column is a number or an array of them, rather than a raw value."""
    return isinstance(value, int | float | list | tuple) or hasattr(value, "__array__")


def _column(name: str, value: object, kind: str) -> Sequence[object]:
    """Return a raw input's values; a text by itself is no column of texts."""
    if isinstance(value, np.ndarray):
        # Fixed widths would cut off the zeros at the end of a file.
        if value.ndim != 1 or value.dtype.kind not in ("OU" if kind == "text" else "O"):
            raise SignatureMismatch(
                f"input {name!r}: expected {kind}s [_], got {value.dtype.name}{list(value.shape)}"
            )
        return list(value.tolist())
    if not isinstance(value, list | tuple):
        raise SignatureMismatch(
            f"input {name!r}: expected a list of {kind}s, got {type(value).__name__}"
        )
    return list(value)


_READERS: Mapping[str, Callable[[Any, Signature, Bundle], Reader]] = {
    "text": lambda stage, signature, bundle: TextReader(
        stage, signature, bundle.read(stage.tokenizer)
    ),
    "image": lambda stage, signature, _: ImageReader(stage, signature),
}


def _open_reader(stage: Stage, signature: Signature, bundle: Bundle) -> Reader:
    return _READERS[stage.kind](stage, signature, bundle)


def open_preparer(bundle: Bundle, checker: Checker) -> Preparer | None:
    """Return what prepares a bundle's raw inputs; None where it takes tensors only.

    Args:
      bundle: opened; its tokenizers were tried before, or are trusted.
      checker: of its signature.

    Raises:
      MissingLibrary: what it needs is not installed.
      BundleError: a file is not what the manifest says, or does not fit the programs.
    """
    signature = bundle.manifest.signature
    stages = bundle.manifest.preprocess
    if not stages:
        return None
    return Preparer([_open_reader(s, signature, bundle) for s in stages], signature, checker)
