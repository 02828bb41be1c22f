"""Shards of predictions: JSONL as it comes, files with columns once a shard is complete."""

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from runtime.batch_prediction.columns import prediction_columns
from runtime.batch_prediction.fields import MISSING, ReadBlock
from runtime.batch_prediction.prediction import AnsweredWindow, Answers
from runtime.entries import OutputFormat
from runtime.records.predictions import Nonfinite, is_as_declared, predictions_from
from runtime.signature import Signature
from runtime.tensors import Array, numpy_dtype, write_tensors

FORMATS = ("jsonl", "parquet", "arrow", "npz", "safetensors")
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class UnwritableError(Exception):
    """Predictions that a format has no way to write; the message says which to take."""


class Shard(Protocol):
    """A file of predictions that is being written."""

    def add(self, answered: AnsweredWindow) -> None:
        """Add the rows of a window."""

    def finish(self) -> None:
        """Write what is left, and close the file."""

    def abandon(self) -> None:
        """Close the file as it is."""


class Written:
    """How predictions are written.

    Args:
      signature: of the bundle.
      form: of predictions.
      key: the name of the field that names a row.
      passed: names of fields that are written beside predictions.
    """

    def __init__(
        self, signature: Signature, form: OutputFormat, key: str, passed: Sequence[str]
    ) -> None:
        self.signature = signature
        self.form = form
        self.key = key
        self.passed = tuple(passed)

    def json(self, answers: Answers) -> Sequence[Any]:
        """Return predictions as orjson writes them, row for row."""
        outputs = dict(
            zip((spec.name for spec in self.signature.outputs), answers.outputs, strict=True)
        )
        declared = all(is_as_declared(s, outputs[s.name]) for s in self.signature.outputs)
        policy: Nonfinite | None = None if declared else "null"
        found: Sequence[Any] = predictions_from(outputs, self.signature, self.form, policy)
        return found

    def columns(self, answers: Answers) -> dict[str, Array]:
        """Return predictions as columns."""
        return prediction_columns(answers.outputs, self.signature, self.form)


def open_shard(path: Path, format_: str, written: Written) -> Shard:
    """Return a shard that is written to a file.

    Args:
      path: of the file, which is made.
      format_: one of FORMATS.
      written: how predictions are written.

    Raises:
      UnwritableError: the format has no way to write such predictions.
    """
    if format_ == "jsonl":
        return _JsonLines(path, written)
    return _Table(path, format_, written)


def expect_writable(format_: str, signature: Signature, form: OutputFormat) -> None:
    """Raise UnwritableError for predictions that a format has no way to write, whatever the rows."""
    if format_ == "safetensors" and form.kind == "classification":
        raise UnwritableError(
            "--format safetensors: expected numbers, got labels, which are texts; use npz, or --raw"
        )
    axes = {axis.name for axis in signature.axes}
    for spec in signature.outputs:
        if format_ in ("npz", "safetensors") and axes.intersection(map(str, spec.shape)):
            raise UnwritableError(
                f"--format {format_}: expected outputs of one shape, got {spec.name!r} {spec}; use jsonl or "
                "parquet"
            )


class _JsonLines:
    """Vertex AI's form: `{"instance" or "key": …, "prediction": …}` on each line."""

    def __init__(self, path: Path, written: Written) -> None:
        self._file = path.open("wb")
        self._written = written

    def add(self, answered: AnsweredWindow) -> None:
        """See `Shard`."""
        window = answered.window
        lines: list[Any] = [b""] * len(window.good)
        for answers in answered.answers:
            predictions = self._written.json(answers)
            for member, prediction in zip(answers.members.tolist(), predictions, strict=True):
                lines[member] = orjson.dumps(prediction, option=_NUMPY)
        out = bytearray()
        start = at = 0
        good = window.good.tolist()
        for block in window.blocks:
            heads = _heads(block, self._written, window.first + start)
            while at < len(good) and good[at] < start + block.count:
                out += heads[good[at] - start]
                out += lines[at]
                out += b"}\n"
                at += 1
            start += block.count
        self._file.write(out)

    def finish(self) -> None:
        """See `Shard`."""
        self._file.close()

    def abandon(self) -> None:
        """See `Shard`."""
        with contextlib.suppress(OSError):  # of a full disk, once more
            self._file.close()


def _heads(block: ReadBlock, written: Written, first: int) -> Sequence[bytes]:
    """Return what stands before the prediction of each row of a block."""
    keys = block.fields.get(written.key)
    if keys is None and block.instances is not None:
        return [b'{"instance":%b,"prediction":' % (line or b"null") for line in block.instances]
    passed = {n: block.fields[n] for n in written.passed if n in block.fields}
    if keys is None and not passed:
        return [b'{"row":%d,"prediction":' % (first + i) for i in range(block.count)]
    found = []
    for i in range(block.count):
        key = MISSING if keys is None else keys[i]
        if key is MISSING and block.instances is not None:
            found.append(b'{"instance":%b,"prediction":' % (block.instances[i] or b"null"))
            continue
        head = {"row": first + i} if key is MISSING else {"key": _plain(key)}
        head |= {n: _plain(v[i]) for n, v in passed.items() if v[i] is not MISSING}
        found.append(orjson.dumps(head, option=_NUMPY)[:-1] + b',"prediction":')
    return found


def _plain(value: Any) -> Any:
    """Return a field's value as orjson writes it."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return str(value) if isinstance(value, np.str_) else value


class _Table:
    """A file with columns: `row`, the key, fields that are passed through, predictions."""

    def __init__(self, path: Path, format_: str, written: Written) -> None:
        expect_writable(format_, written.signature, written.form)
        self._path = path
        self._format = format_
        self._written = written
        self._rows: list[Array] = []
        self._fields: dict[str, list[Any]] = {}
        self._columns: list[tuple[Array, dict[str, Array]]] = []
        self._count = 0

    def add(self, answered: AnsweredWindow) -> None:
        """See `Shard`."""
        window = answered.window
        self._rows.append(window.good + window.first)
        start = at = 0
        for block in window.blocks:
            own = window.good[(window.good >= start) & (window.good < start + block.count)] - start
            for name in (self._written.key, *self._written.passed):
                values = block.fields.get(name)
                if values is None:
                    continue
                column = self._fields.setdefault(name, [])
                column += [None] * (self._count + at - len(column))
                column += [None if values[i] is MISSING else values[i] for i in own.tolist()]
            at += len(own)
            start += block.count
        self._columns += [
            (answers.members + self._count, self._written.columns(answers))
            for answers in answered.answers
        ]
        self._count += len(window.good)

    def finish(self) -> None:
        """See `Shard`."""
        table: dict[str, Any] = {
            "row": np.concatenate([*self._rows, np.empty(0, np.int64)]).astype(np.int64)
        }
        for name, column in self._fields.items():
            padded = [*column, *[None] * (self._count - len(column))]
            if any(value is not None for value in padded):
                table["key" if name == self._written.key else name] = padded
        for name, values in self._predictions().items():
            table[name if name not in table else f"prediction.{name}"] = values
        if self._format in ("parquet", "arrow"):
            from runtime.batch_prediction.arrow_writer import write_table

            write_table(self._path, self._format, table)
        else:
            _write_arrays(self._path, self._format, table)

    def abandon(self) -> None:
        """See `Shard`."""

    def _predictions(self) -> Mapping[str, Any]:
        if not self._columns:
            shapes = [
                spec.concrete(0, {a.name: a.sizes[0] for a in self._written.signature.axes})
                for spec in self._written.signature.outputs
            ]
            empty = tuple(
                np.empty(shape, numpy_dtype(spec.dtype))
                for shape, spec in zip(shapes, self._written.signature.outputs, strict=True)
            )
            return self._written.columns(Answers(np.empty(0, np.intp), empty))
        names = list(self._columns[0][1])
        found: dict[str, Any] = {}
        for name in names:
            pieces = [columns[name] for _, columns in self._columns]
            if len({piece.shape[1:] for piece in pieces}) == 1:
                whole = np.concatenate(pieces)
                order = np.argsort(np.concatenate([own for own, _ in self._columns]), kind="stable")
                found[name] = whole[order]
            else:
                rows: list[Any] = [None] * self._count
                for own, columns in self._columns:
                    for member, value in zip(own.tolist(), columns[name], strict=True):
                        rows[member] = value
                found[name] = rows
        return found


def _write_arrays(path: Path, format_: str, table: Mapping[str, Any]) -> None:
    """Write npz or safetensors; each column is an array."""
    arrays = {name: _array(name, values, format_) for name, values in table.items()}
    with path.open("wb") as file:
        if format_ == "npz":
            np.savez(file, allow_pickle=False, **arrays)
        else:
            write_tensors(file, arrays)


def _array(name: str, values: Any, format_: str) -> Array:
    array: Array
    if isinstance(values, np.ndarray):
        array = values
    elif set(map(type, values)) <= {int}:
        array = np.array(values, np.int64)
    else:
        array = np.array([_text(value) for value in values])
    if (
        format_ == "npz" and array.dtype.kind == "V"
    ):  # bfloat16 and float8, which NumPy cannot read back
        return array.astype(np.float32)
    if format_ == "safetensors" and array.dtype.kind == "U":
        raise UnwritableError(
            f"--format safetensors: expected numbers, got texts in {name!r}; use npz, or --raw and keys "
            "that are integers"
        )
    return array


def _text(value: Any) -> str:
    """Return a field's value as text: a string as it is, others as JSON, none as nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
