"""Golden texts: the user's own, or seeded ones of the tokenizer's vocabulary; and what they become."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from export.golden_inputs import LINES, MAX_ROWS, GoldenInputs, expect_golden_file, seeded_inputs
from export.spec import ExportSpec
from runtime.errors import SignatureMismatch
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.texts import TextReader
from runtime.preprocessing.tokenizer import Text, Tokenizer, TokenizerError
from runtime.records.tensors import convert, kind_of
from runtime.signature import Signature, TensorSpec
from runtime.tensors import numpy_dtype
from runtime.textfiles import NotText, read_json, read_text

# Of each length bucket.
_ROWS = 4
_TRIES = 20
# What libraries have changed their minds about: accents, width, scripts without spaces, emoji,
# controls, numbers. It is left out where it has too many tokens.
_MIXED = "Na\u00efve CAF\u00c9, e\u0301 \uff21\t\u4e2d\u6587 \U0001f642 1,234.56!"


@dataclasses.dataclass(frozen=True, slots=True)
class RawRows:
    """Rows that begin at texts.

    Attributes:
      columns: raw input to its texts.
      tensors: inputs that no stage makes, by name.
    """

    columns: dict[str, list[Any]]
    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)


def given_rows(spec: ExportSpec) -> RawRows | None:
    """Return the golden texts of a spec; None where its goldens are tensors, or seeded.

    Raises:
      ExportError: they cannot be read, or are for text inputs that were not declared.
    """
    names = [n for text in spec.preprocess for n in (text.input, text.pair) if n is not None]
    golden = spec.golden
    if isinstance(golden, Mapping):
        if not any(name in golden for name in names):
            return None
        rest = {name: value for name, value in golden.items() if name not in names}
        return RawRows({name: _listed(name, golden.get(name)) for name in names}, rest)
    if golden is None or Path(golden).suffix != LINES:
        return None
    if not names:
        raise ExportError(
            f"golden {golden}: expected .safetensors or .npz of inputs by name, got texts; declare "
            "the text input, --text NAME=tokenizer.json"
        )
    specs = {s.name: s for s in spec.inputs if isinstance(s, TensorSpec)}
    return _read_lines(golden, names, specs)


def _listed(name: str, value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ExportError(
            f"golden: expected a list of texts for {name!r}, got {type(value).__name__}"
        )
    return list(value)


def _read_lines(
    path: str | os.PathLike[str], names: Sequence[str], specs: Mapping[str, TensorSpec]
) -> RawRows:
    """Read JSON lines: each an object of inputs by name, or the text where there is one only."""
    expect_golden_file(path)
    try:
        lines = [line for line in read_text(path).split("\n") if line.strip()]
    except NotText as error:
        raise ExportError(f"golden {path}: expected JSON lines in UTF-8, got {error}") from None
    rows = [_read_line(line, names, f"golden {path}, line {i}") for i, line in enumerate(lines, 1)]
    if not rows:
        raise ExportError(f"golden {path}: expected at least one row, got none")
    for i, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            raise ExportError(
                f"golden {path}, line {i}: expected the keys of the first line, {sorted(rows[0])}, "
                f"got {sorted(row)}"
            )
    columns = {name: [row[name] for row in rows] for name in names}
    tensors = {}
    for name in rows[0].keys() - columns.keys():
        spec = specs.get(name)
        array = None if spec is None else convert(spec.dtype, [row[name] for row in rows])
        if array is None:
            expected = f"rows of {spec}" if spec else f"an input of {', '.join(specs)}"
            raise ExportError(f"golden {path}: {name!r}: expected {expected}, got other values")
        tensors[name] = array
    return RawRows(columns, tensors)


def _read_line(line: str, names: Sequence[str], where: str) -> dict[str, Any]:
    try:
        row = read_json(line)
    except NotText as error:
        raise ExportError(f"{where}: expected JSON, got {error}") from None
    if isinstance(row, str) and len(names) == 1:
        row = {names[0]: row}
    if not isinstance(row, dict) or not set(names) <= row.keys():
        expected = ", ".join(map(repr, names))
        raise ExportError(f"{where}: expected an object with {expected}, got {kind_of(row)}")
    return row


def text_goldens(rows: RawRows, signature: Signature, preparer: Preparer) -> list[GoldenInputs]:
    """Return golden inputs that are made of texts, one for each length bucket among them.

    Behind them is one with the largest legal ids, which only a model of as many tokens answers.

    Raises:
      ExportError: a text does not fit.
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
        raw = [{name: str(texts[i]) for name, texts in rows.columns.items()} for i in members]
        found.append(GoldenInputs(arrays, sizes, raw))
    return [*found, _largest_ids(found[0], signature, preparer)]


def _largest_ids(golden: GoldenInputs, signature: Signature, preparer: Preparer) -> GoldenInputs:
    inputs = {spec.name: spec for spec in signature.inputs}
    arrays = {name: array[:1] for name, array in golden.inputs.items()}
    for reader in preparer.readers:
        ids = reader.stage.input_ids
        arrays[ids] = np.full_like(arrays[ids], inputs[ids].maximum)
    return GoldenInputs(arrays, golden.sizes, None)


def seeded_rows(
    spec: ExportSpec, signature: Signature, readers: Sequence[tuple[TextReader, Tokenizer]]
) -> RawRows:
    """Draw texts of the tokenizers' vocabularies, of lengths in each bucket; the same for a seed.

    Args:
      spec: has the seed.
      signature: of the inputs.
      readers: of each stage, with a tokenizer that truncates nothing.

    Raises:
      ExportError: no text of the vocabulary has a legal number of tokens.
    """
    columns: dict[str, list[Any]] = {}
    targets = [_targets(reader, signature) for reader, _ in readers]
    count = max(map(len, targets))
    for number, ((reader, tokenizer), lengths) in enumerate(zip(readers, targets, strict=True)):
        rng = np.random.default_rng([spec.seed, number])
        drawn = [_draw(reader, tokenizer, lengths[i % len(lengths)], rng) for i in range(count - 1)]
        mixed: Text = _MIXED if reader.stage.pair is None else (_MIXED, _MIXED)
        fits = _count(tokenizer, mixed) <= reader.stage.max_tokens
        last = mixed if fits and _is_read(reader, mixed) else drawn[0]
        for i, name in enumerate(reader.stage.raw_names):
            columns[name] = [row if isinstance(row, str) else row[i] for row in (*drawn, last)]
    made = {name for reader, _ in readers for name in reader.stage.made}
    others = [s for s in signature.inputs if s.name not in made and not s.mask]
    sizes = {axis.name: axis.sizes[0] for axis in signature.axes}
    return RawRows(columns, dict(seeded_inputs(others, sizes, count, spec.seed)))


def _targets(reader: TextReader, signature: Signature) -> list[int]:
    """Return the numbers of tokens that rows should have: in each length bucket from most to few."""
    longest = reader.stage.max_tokens
    sizes = next((axis.sizes for axis in signature.axes if axis.name == reader.axis), (longest,))
    limits = [min(size, longest) for size in sizes if size < longest] + [longest]
    rows = _ROWS if len(limits) > 1 else MAX_ROWS
    targets = []
    for below, size in zip([0, *limits[:-1]], limits, strict=True):
        targets += [size - (size - below) * i // rows for i in range(rows)]
    return targets


def _draw(reader: TextReader, tokenizer: Tokenizer, target: int, rng: np.random.Generator) -> Text:
    """Draw a text, or a pair, of about so many tokens, and no more."""
    special = tokenizer.special_ids()
    plain = sorted(set(tokenizer.vocabulary().values()) - special)
    pair = reader.stage.pair is not None
    length = max(1, target - tokenizer.added_tokens(pair=pair))
    for _ in range(_TRIES if plain else 0):
        ids = [plain[i] for i in rng.integers(len(plain), size=length)]
        half = length // 2
        row: Text = (
            (_spoken(tokenizer, ids[:half]), _spoken(tokenizer, ids[half:]))
            if pair
            else _spoken(tokenizer, ids)
        )
        count = _count(tokenizer, row)
        if count <= target and _is_read(reader, row):
            return row
        length = max(1, min(length - 1, length * target // max(1, count)))
    row = ("", "") if pair else ""
    if _is_read(reader, row):
        return row
    raise ExportError(
        f"text {reader.stage.input!r}: expected texts of {target} tokens in the tokenizer's "
        "vocabulary, got none; pass texts, --golden FILE.jsonl"
    )


def _spoken(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return a text for ids, without what is no text: half of a character, as of single bytes."""
    try:
        return tokenizer.decode(ids).replace("\ufffd", "")
    except TokenizerError:
        return ""


def _count(tokenizer: Tokenizer, row: Text) -> int:
    try:
        [found] = tokenizer.encode([row])
    except TokenizerError:
        return 0
    return len(found.ids)


def _is_read(reader: TextReader, row: Text) -> bool:
    values = (row,) if isinstance(row, str) else row
    columns = {name: [value] for name, value in zip(reader.stage.raw_names, values, strict=True)}
    try:
        return len(reader.read(columns, lambda name, _: name)) == 1
    except SignatureMismatch:
        return False
