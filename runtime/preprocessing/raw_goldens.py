"""Goldens that begin at raw inputs: what the stages make of them must be what was recorded.

The tensors are kept beside the raw rows, so that a tokenizer that gives other ids, or a library that
gives other pixels, is distinguished from a model that gives other answers.
"""

import base64
import binascii
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.bundle import Bundle
from runtime.entries import Golden
from runtime.errors import IntegrityError, SignatureMismatch
from runtime.manifest import Manifest
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.readers import Reader
from runtime.preprocessing.resources import UNLIMITED
from runtime.tensors import Array

RawRow = Mapping[str, str | bytes]
_TYPES: Mapping[str, type] = {"text": str, "image": bytes}


def read_raw(bundle: Bundle, golden: Golden) -> list[dict[str, Any]]:
    """Return the raw rows of a golden, by the names of the raw inputs; none if it has tensors only.

    Texts are strings, images the bytes of their files.

    Raises:
      IntegrityError: they are not as the format has them.
    """
    if golden.raw is None:
        return []
    kinds = {name: s.kind for s in bundle.manifest.preprocess for name in s.raw_names}
    forms = {name: _TYPES[kind] for name, kind in kinds.items()}
    rows = []
    for i, line in enumerate(bundle.read(golden.raw).splitlines()):
        try:
            row = {name: raw_value(value) for name, value in json.loads(line).items()}
        except (ValueError, RecursionError, AttributeError):
            row = {}
        if {name: type(value) for name, value in row.items()} != forms:
            expected = ", ".join(f"{kinds[name]} {name!r}" for name in sorted(kinds))
            raise IntegrityError(
                f"{golden.raw.path}, row {i}: expected an object with the {expected}, got "
                "something else"
            )
        rows.append(row)
    if len(rows) != golden.rows:
        raise IntegrityError(
            f"{golden.raw.path}: expected {golden.rows} lines, a row each, got {len(rows)}"
        )
    return rows


def raw_value(value: Any) -> str | bytes | None:
    """Return a text of JSON, or the bytes in `{"b64": …}`; None for something else."""
    if isinstance(value, str):
        return value
    if not (isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)):
        return None
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        return None


def as_json(row: RawRow) -> dict[str, Any]:
    """Return a raw row as JSON has it."""
    return {
        name: {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def write_raw(rows: Sequence[RawRow]) -> bytes:
    """Write what `read_raw` reads."""
    lines = (json.dumps(as_json(row), ensure_ascii=False) for row in rows)
    return b"".join(line.encode() + b"\n" for line in lines)


def check_raw_goldens(bundle: Bundle, preparer: Preparer | None) -> list[str]:
    """Return what is made of raw goldens otherwise than was recorded, a line for each golden.

    Args:
      bundle: whose goldens these are.
      preparer: of the bundle.

    Raises:
      IntegrityError: a golden is not as the format has it.
    """
    if preparer is None:
        return []
    found = []
    for golden in bundle.manifest.goldens:
        rows = read_raw(bundle, golden)
        if rows:
            found += list(_differences(bundle, golden, rows, preparer))
    return found


def _differences(
    bundle: Bundle, golden: Golden, rows: Sequence[RawRow], preparer: Preparer
) -> Iterator[str]:
    assert golden.raw is not None  # noqa: S101 (there are rows)
    recorded = bundle.map(golden.file)
    for reader in preparer.readers:
        path = golden.raw.path
        columns = {name: [row[name] for row in rows] for name in reader.stage.raw_names}
        try:
            items = reader.read(columns, lambda _, i: f"row {i}", UNLIMITED)
        except SignatureMismatch as error:
            yield f"{path}: {error}{_whose(bundle.manifest, reader)}"
            continue
        difference = _difference(reader, golden, recorded, items)
        if difference:
            yield f"{path}, {difference}{_whose(bundle.manifest, reader)}"


def _difference(
    reader: Reader, golden: Golden, recorded: Mapping[str, Array], items: Sequence[Any]
) -> str:
    """Return the first row of a golden that one stage makes otherwise, or nothing."""
    size = 0 if reader.axis is None else golden.axes[reader.axis]
    for i, row in enumerate(items):
        if reader.axis is not None and row.size > size:
            return f"row {i}: expected at most {size} tokens, got {row.size}"
    for name, made in reader.lay_out(items, size).items():
        expected = recorded.get(f"input/{name}")
        if expected is None or (expected.shape, expected.dtype) != (made.shape, made.dtype):
            return (
                f"{name}: expected an array like {made.dtype.name}{list(made.shape)}, got another"
            )
        for i, (one, other) in enumerate(zip(expected, made, strict=True)):
            if difference := reader.difference(name, one, other):
                return f"row {i}: {difference}"
    return ""


def _whose(manifest: Manifest, reader: Reader) -> str:
    here = importlib.metadata.version(reader.library)
    then = manifest.exporter.get(reader.library, "?")
    return f"; {reader.changed} than at export ({reader.library} {then} then, {here} here)"
