"""Goldens that begin at raw inputs: what the stages make of them must be what was recorded.

The tensors are kept beside the raw rows, so that a tokenizer that gives other ids is distinguished
from a model that gives other answers.
"""

import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from runtime.bundle import Bundle
from runtime.entries import Golden
from runtime.errors import IntegrityError, SignatureMismatch
from runtime.manifest import Manifest
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.texts import TextReader, Tokens
from runtime.tensors import Array

# Ids of a row that a message shows.
_SHOWN = 12


def read_raw(bundle: Bundle, golden: Golden) -> list[dict[str, str]]:
    """Return the raw rows of a golden, by the names of the raw inputs; none if it has tensors only.

    Raises:
      IntegrityError: they are not as the format has them.
    """
    if golden.raw is None:
        return []
    names = sorted(name for stage in bundle.manifest.preprocess for name in stage.raw_names)
    rows = []
    for i, line in enumerate(bundle.read(golden.raw).splitlines()):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        texts = isinstance(row, dict) and all(isinstance(text, str) for text in row.values())
        if not texts or sorted(row) != names:
            raise IntegrityError(
                f"{golden.raw.path}, row {i}: expected an object with the texts {names}, got "
                "something else"
            )
        rows.append(row)
    if len(rows) != golden.rows:
        raise IntegrityError(
            f"{golden.raw.path}: expected {golden.rows} lines, a row each, got {len(rows)}"
        )
    return rows


def write_raw(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Write what `read_raw` reads."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


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
    bundle: Bundle, golden: Golden, rows: Sequence[Mapping[str, str]], preparer: Preparer
) -> Iterator[str]:
    assert golden.raw is not None  # noqa: S101 (there are rows)
    recorded = bundle.map(golden.file)
    for reader in preparer.readers:
        path = golden.raw.path
        columns = {name: [row[name] for row in rows] for name in reader.stage.raw_names}
        try:
            tokens = reader.read(columns, lambda _, i: f"row {i}")
        except SignatureMismatch as error:
            yield f"{path}: {error}{_whose(bundle.manifest)}"
            continue
        difference = _difference(reader, golden, recorded, tokens)
        if difference:
            yield f"{path}, {difference}{_whose(bundle.manifest)}"


def _difference(
    reader: TextReader, golden: Golden, recorded: Mapping[str, Array], tokens: Sequence[Tokens]
) -> str:
    """Return the first row of a golden that one stage makes otherwise, or nothing."""
    size = 0 if reader.axis is None else golden.axes[reader.axis]
    for i, row in enumerate(tokens):
        if reader.axis is not None and len(row.ids) > size:
            return f"row {i}: expected at most {size} tokens, got {len(row.ids)}"
    for name, made in reader.lay_out(tokens, size).items():
        expected = recorded.get(f"input/{name}")
        if expected is None or (expected.shape, expected.dtype) != (made.shape, made.dtype):
            return (
                f"{name}: expected an array like {made.dtype.name}{list(made.shape)}, got another"
            )
        for i, (one, other) in enumerate(zip(expected, made, strict=True)):
            if not np.array_equal(one, other):
                return f"row {i}: expected {name} {_shown(one)}, got {_shown(other)}"
    return ""


def _shown(values: Array) -> str:
    listed = np.atleast_1d(values).tolist()
    more = ", …" if len(listed) > _SHOWN else ""
    return f"[{', '.join(map(str, listed[:_SHOWN]))}{more}]"


def _whose(manifest: Manifest) -> str:
    here = importlib.metadata.version("tokenizers")
    then = manifest.exporter.get("tokenizers", "?")
    return f"; the tokenizer gives other ids than at export (tokenizers {then} then, {here} here)"
