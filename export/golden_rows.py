"""Golden rows that begin at raw inputs: the user's own, and what golden rows become."""

import base64
import binascii
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from export.golden_inputs import LINES, GoldenInputs, expect_golden_file
from export.preprocess import kind_of
from export.spec import ExportSpec
from runtime.errors import SignatureMismatch
from runtime.localpaths import why_not_read
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.raw_goldens import RawRow
from runtime.raw_inputs import TextStage
from runtime.records import tensors
from runtime.records.tensors import convert
from runtime.signature import Signature, TensorSpec
from runtime.tensors import numpy_dtype
from runtime.textfiles import NotText, read_json, read_text


@dataclasses.dataclass(frozen=True, slots=True)
class RawRows:
    """Rows that begin at raw inputs.

    Attributes:
      columns: raw input to its values: texts, or files of images as bytes.
      tensors: inputs that no stage makes, by name.
    """

    columns: dict[str, list[Any]]
    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)


def given_rows(spec: ExportSpec) -> RawRows | None:
    """Return the golden raw rows of a spec; None where its goldens are tensors, or seeded.

    Raises:
      ExportError: they cannot be read, or are for raw inputs that were not declared.
    """
    kinds = {name: kind_of(stage) for stage in spec.preprocess for name in stage.names}
    golden = spec.golden
    if isinstance(golden, Mapping):
        if not any(name in golden and _is_raw(golden[name], kinds[name]) for name in kinds):
            return None
        rest = {name: value for name, value in golden.items() if name not in kinds}
        columns = {name: _listed(name, golden.get(name), kind) for name, kind in kinds.items()}
        return RawRows(columns, rest)
    if golden is None or Path(golden).suffix != LINES:
        return None
    if not kinds:
        raise ExportError(
            f"golden {golden}: expected .safetensors or .npz of inputs by name, got JSON lines; declare "
            "the text or image input, --text NAME=tokenizer.json or --image NAME=SIZE"
        )
    specs = {s.name: s for s in spec.inputs if isinstance(s, TensorSpec)}
    return _read_lines(golden, kinds, specs)


def _is_raw(values: Any, kind: str) -> bool:
    """Whether a column is of raw values: an image's name can also be that of pixels."""
    first = next(iter(values), None) if isinstance(values, Sequence | np.ndarray) else None
    return kind == "text" or isinstance(first, bytes | str | os.PathLike)


def _listed(name: str, value: Any, kind: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ExportError(
            f"golden: expected a list of {kind}s for {name!r}, got {type(value).__name__}"
        )
    if kind == "text":
        return list(value)
    where = f"golden: {name!r} of row"
    return [
        one if isinstance(one, bytes) else _file(one, Path(), f"{where} {i}")
        for i, one in enumerate(value)
    ]


def _file(path: Any, folder: Path, where: str) -> bytes:
    """Return the bytes of a golden image."""
    if not isinstance(path, str | os.PathLike):
        raise ExportError(
            f"{where}: expected the path or bytes of an image, got {type(path).__name__}"
        )
    if reason := why_not_read(path):
        raise ExportError(f"{where}: {reason}")
    try:
        return (folder / Path(path)).read_bytes()
    except OSError as error:
        raise ExportError(f"{where}: expected an image, got {error.strerror} at {path}") from None


def _read_lines(
    path: str | os.PathLike[str], kinds: Mapping[str, str], specs: Mapping[str, TensorSpec]
) -> RawRows:
    """Read JSON lines: each an object of inputs by name, or the raw value where there is one only."""
    expect_golden_file(path)
    try:
        lines = [line for line in read_text(path).split("\n") if line.strip()]
    except NotText as error:
        raise ExportError(f"golden {path}: expected JSON lines in UTF-8, got {error}") from None
    rows = [_read_line(line, kinds, f"golden {path}, line {i}") for i, line in enumerate(lines, 1)]
    if not rows:
        raise ExportError(f"golden {path}: expected at least one row, got none")
    for i, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise ExportError(
                f"golden {path}, line {i}: expected the keys of the first line, {sorted(rows[0])}, "
                f"got {sorted(row)}"
            )
    columns = {
        name: [
            row[name] if kind == "text" else _image_of(row[name], Path(path), i)
            for i, row in enumerate(rows, 1)
        ]
        for name, kind in kinds.items()
    }
    arrays = {}
    for name in rows[0].keys() - columns.keys():
        spec = specs.get(name)
        array = None if spec is None else convert(spec.dtype, [row[name] for row in rows])
        if array is None:
            expected = f"rows of {spec}" if spec else f"an input of {', '.join(specs)}"
            raise ExportError(f"golden {path}: {name!r}: expected {expected}, got other values")
        arrays[name] = array
    return RawRows(columns, arrays)


def _read_line(line: str, names: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        row = read_json(line)
    except NotText as error:
        raise ExportError(f"{where}: expected JSON, got {error}") from None
    if len(names) == 1 and (isinstance(row, str) or _is_b64(row)):
        row = {next(iter(names)): row}
    if not isinstance(row, dict) or not set(names) <= row.keys():
        expected = ", ".join(map(repr, names))
        raise ExportError(
            f"{where}: expected an object with {expected}, got {tensors.kind_of(row)}"
        )
    return row


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _image_of(value: Any, source: Path, line: int) -> bytes:
    """Return an image of JSON lines: the path of a file, beside them, or `{"b64": …}`."""
    where = f"golden {source}, line {line}"
    if not _is_b64(value):
        if not isinstance(value, str):
            raise ExportError(
                f'{where}: expected the path of an image or {{"b64": …}}, got '
                f"{tensors.kind_of(value)}"
            )
        return _file(value, source.parent, where)
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ExportError(f"{where}: expected base64, got other characters") from None


def raw_goldens(rows: RawRows, signature: Signature, preparer: Preparer) -> list[GoldenInputs]:
    """Return golden inputs that are made of raw rows, one for each length bucket among them.

    Where there are texts, behind them is one with the largest legal ids, which only a model of as many
    tokens answers.

    Raises:
      ExportError: a raw value does not fit.
    """
    try:
        prepared = preparer.prepare(
            {**rows.columns, **rows.tensors}, lambda name, i: f"golden: {name!r} of row {i}"
        )
    except SignatureMismatch as error:
        what = "" if str(error).startswith("golden") else "golden: "
        raise ExportError(f"{what}{error}") from None
    axes = [axis.name for axis in signature.axes]
    found = []
    for part, members in zip(prepared.parts, prepared.order, strict=True):
        sizes = dict(zip(axes, part.sizes, strict=True))
        arrays = {
            spec.name: np.ones(spec.concrete(part.rows, sizes), numpy_dtype(spec.dtype))
            if array is None
            else array
            for spec, array in zip(signature.inputs, part.arrays, strict=True)
        }
        found.append(GoldenInputs(arrays, sizes, [_row(rows, i) for i in members]))
    return [*found, *_largest_ids(found[0], signature, preparer)]


def _row(rows: RawRows, number: int) -> RawRow:
    return {
        name: value if isinstance(value := values[number], bytes) else str(value)
        for name, values in rows.columns.items()
    }


def _largest_ids(
    golden: GoldenInputs, signature: Signature, preparer: Preparer
) -> list[GoldenInputs]:
    inputs = {spec.name: spec for spec in signature.inputs}
    arrays = {name: array[:1] for name, array in golden.inputs.items()}
    stages = [r.stage for r in preparer.readers if isinstance(r.stage, TextStage)]
    for stage in stages:
        ids = stage.input_ids
        arrays[ids] = np.full_like(arrays[ids], inputs[ids].maximum)
    return [GoldenInputs(arrays, golden.sizes, None)] if stages else []
