"""Blocks to checked rows, and beside them the fields that are no inputs: keys and what passes through."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from runtime.batch_prediction.blocks import Block, Columns, InputError, Lines, Misfit
from runtime.batch_prediction.jsonl import MAX_LINE_BYTES
from runtime.batch_prediction.rows import Rows, check_columns, check_instances
from runtime.errors import nearest
from runtime.model import Model
from runtime.records.duplicate_keys import duplicate_key
from runtime.signature import Signature, notation
from runtime.tensors import Array, numpy_dtype

_NO_ROWS = Rows((), (), {})
# Stands for a field that a row does not have.
MISSING = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of rows are no inputs.

    Attributes:
      key: the name of the field that names a row.
      key_required: whether a row without it is refused.
      passed: names of fields that are written beside predictions.
    """

    key: str
    key_required: bool
    passed: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all these fields, the key first."""
        return (self.key, *self.passed)


@dataclasses.dataclass(frozen=True, slots=True)
class ReadBlock:
    """A block's rows, checked.

    Attributes:
      file: as it is called in messages.
      count: of its rows, those that were refused among them.
      rows: checked.
      places: for messages, each row's place in its file: a number of a line, or of a row.
      lines: whether places are numbers of lines.
      instances: each row as it stood in the input; None where it is too long to be repeated.
      fields: name to each row's value, MISSING where it has none.
      misfit: what is wrong with the file as a whole, else "".
    """

    file: str
    count: int
    rows: Rows
    places: Sequence[int]
    lines: bool = False
    instances: Sequence[bytes | None] | None = None
    fields: Mapping[str, Sequence[Any] | Array] = dataclasses.field(default_factory=dict)
    misfit: str = ""


def read_block(block: Block, model: Model, fields: Fields) -> ReadBlock:
    """Check the rows of a block.

    Args:
      block: as it was read.
      model: that the rows are for.
      fields: that are no inputs.
    """
    if isinstance(block, Misfit):
        return ReadBlock(block.file, 0, _NO_ROWS, (), misfit=block.reason)
    return (
        _read_lines(block, model, fields)
        if isinstance(block, Lines)
        else _read_columns(block, model, fields)
    )


def _read_lines(block: Lines, model: Model, fields: Fields) -> ReadBlock:
    found: dict[str, list[Any]] = {name: [MISSING] * block.rows for name in fields.names}
    instances: list[Any] = []
    good: list[int] = []
    refused: dict[int, str] = {}
    for i, line in enumerate(block.lines):
        try:
            instance = _parsed(line)
            for name in fields.names if type(instance) is dict else ():
                found[name][i] = instance.pop(name, MISSING)
            _expect_key(fields, found[fields.key][i])
        except _BadLine as error:
            refused[i] = str(error)
        else:
            instances.append(instance)
            good.append(i)
    rows = _placed(check_instances(instances, model), good, refused)
    return ReadBlock(block.file, block.rows, rows, block.numbers, True, block.lines, found)


def _expect_key(fields: Fields, key: Any) -> None:
    if fields.key_required and key is MISSING:
        raise _BadLine(f"expected the key {fields.key!r}, got none")


class _BadLine(Exception):
    """A line is no row."""


def _parsed(line: bytes | None) -> Any:
    if line is None:
        raise _BadLine(f"expected a line of at most {MAX_LINE_BYTES} bytes, got a longer one")
    try:
        value = orjson.loads(line)
        twice = duplicate_key(line, value)
    except RecursionError:
        raise _BadLine("expected JSON, got objects hundreds deep") from None
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            raise _BadLine(
                f"expected UTF-8, got the byte {line[wrong.start]:#x} at {wrong.start}"
            ) from None
        raise _BadLine(f"expected JSON, got {error}") from None
    if twice is not None:
        raise _BadLine(f"expected each key once, got {twice[:100]!r} twice")
    return value


def _placed(rows: Rows, good: Sequence[int], refused: Mapping[int, str]) -> Rows:
    """Return rows by their places in a block, of which only some were checked."""
    if not refused:
        return rows
    at = np.asarray(good, np.intp)
    merged = {**refused, **{int(at[i]): why for i, why in rows.refused.items()}}
    return Rows(rows.parts, tuple(at[own] for own in rows.members), dict(sorted(merged.items())))


def _read_columns(block: Columns, model: Model, fields: Fields) -> ReadBlock:
    columns = {n: c for n, c in block.columns.items() if n not in fields.names}
    refused = dict(block.refused)
    found = {n: block.columns[n] for n in fields.names if n in block.columns}
    for name, column in columns.items():
        if isinstance(column, list):
            for i, value in enumerate(column):
                if value is None:
                    refused.setdefault(i, f"input {name!r}: expected a value, got null")
    if fields.key in found:
        for i, key in enumerate(found[fields.key]):
            if key is None:
                refused.setdefault(i, f"expected the key {fields.key!r}, got null")
    good = [i for i in range(block.rows) if i not in refused] if refused else range(block.rows)
    if refused:
        columns = {
            n: c[np.asarray(good, np.intp)] if isinstance(c, np.ndarray) else [c[i] for i in good]
            for n, c in columns.items()
        }
    if model.preparer is not None and model.preparer.takes(columns):
        rows = check_instances(_instances(columns, len(good)), model)
    else:
        rows = check_columns(columns, len(good), model)
    places = range(block.first, block.first + block.rows)
    return ReadBlock(block.file, block.rows, _placed(rows, good, refused), places, fields=found)


def _instances(columns: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """Return rows that have raw inputs as JSON would have them."""
    lists = {
        n: c.tolist() if isinstance(c, np.ndarray) else list(map(_plain, c))
        for n, c in columns.items()
    }
    return [{name: values[i] for name, values in lists.items()} for i in range(rows)]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def wanted_columns(model: Model, fields: Fields) -> frozenset[str]:
    """Return the names of the columns that a file with columns is read for."""
    raw = model.preparer.raw_names if model.preparer is not None else ()
    return frozenset((*fields.names, *raw, *(spec.name for spec in model.signature.inputs)))


def expect_columns(
    file: str,
    names: Sequence[str],
    kinds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    model: Model,
    fields: Fields,
) -> list[str]:
    """Return the columns of a file that are read for nothing.

    Args:
      file: as it is called in messages.
      names: of its columns.
      kinds: dtype and shape of those that are arrays.
      model: that needs some.
      fields: that are no inputs.

    Raises:
      InputError: one is missing.
    """
    preparer = model.preparer
    # An image's input has pixels under the same name.
    columns = {n: np.empty(0, kinds[n][0]) if n in kinds else ("",) for n in names}
    if preparer is not None and preparer.takes(columns):
        needed = [n for n in preparer.expected_names if n not in preparer.optional_names]
    else:
        needed = [spec.name for spec in model.signature.inputs if not spec.mask]
    needed += [fields.key] if fields.key_required else []
    for name in needed:
        if name not in names:
            shown = ", ".join(map(repr, names[:20]))
            raise InputError(
                f"{file}: expected a column {name!r}, got {shown or 'none'}{nearest(name, names)}"
            )
    return sorted(set(names) - wanted_columns(model, fields))


def expect_arrays(
    file: str, kinds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], signature: Signature
) -> None:
    """Refuse a file whose arrays are of another dtype or shape than inputs: no row of it could fit.

    Args:
      file: as it is called in messages.
      kinds: name to dtype and shape of each column.
      signature: of the inputs.

    Raises:
      InputError: names the first that does not fit.
    """
    for spec in signature.inputs:
        if spec.name not in kinds:
            continue
        dtype, shape = kinds[spec.name]
        wanted = numpy_dtype(spec.dtype)
        narrowing = dtype.newbyteorder("=") == np.int64 and wanted.kind in "iu"
        sizes = zip(spec.shape[1:], shape[1:], strict=False)
        alike = len(shape) == len(spec.shape) and all(
            isinstance(dim, str) or dim == size for dim, size in sizes
        )
        if not alike or not (narrowing or dtype.newbyteorder("=") == wanted):
            got = notation(dtype.newbyteorder("=").name, shape)
            raise InputError(f"{file}: column {spec.name!r}: expected {spec}, got {got}")
