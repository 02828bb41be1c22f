"""Golden texts where none are given: seeded ones of the tokenizer's vocabulary."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from export.errors import ExportError
from export.golden_inputs import MAX_ROWS
from runtime.errors import SignatureMismatch
from runtime.preprocessing.texts import TextReader
from runtime.preprocessing.tokenizer import Text, Tokenizer, TokenizerError
from runtime.signature import Signature

# Of each length bucket.
_ROWS = 4
_TRIES = 20
# What libraries have changed their minds about: accents, width, scripts without spaces, emoji,
# controls, numbers. It is left out where it has too many tokens.
_MIXED = "Na\u00efve CAF\u00c9, e\u0301 \uff21\t\u4e2d\u6587 \U0001f642 1,234.56!"


def draw_texts(
    reader: TextReader, tokenizer: Tokenizer, signature: Signature, count: int, seed: Sequence[int]
) -> dict[str, list[Any]]:
    """Draw texts of a tokenizer's vocabulary, of lengths in each bucket; the same for a seed.

    Args:
      reader: of the stage.
      tokenizer: one that truncates nothing.
      signature: of the inputs.
      count: of rows.
      seed: numbers.

    Returns:
      Raw input to its texts.

    Raises:
      ExportError: no text of the vocabulary has a legal number of tokens.
    """
    lengths = targets(reader, signature)
    rng = np.random.default_rng(list(seed))
    drawn = [_draw(reader, tokenizer, lengths[i % len(lengths)], rng) for i in range(count - 1)]
    mixed: Text = _MIXED if reader.stage.pair is None else (_MIXED, _MIXED)
    fits = _count(tokenizer, mixed) <= reader.stage.max_tokens
    last = mixed if fits and _is_read(reader, mixed) else drawn[0]
    return {
        name: [row if isinstance(row, str) else row[i] for row in (*drawn, last)]
        for i, name in enumerate(reader.stage.raw_names)
    }


def targets(reader: TextReader, signature: Signature) -> list[int]:
    """Return the numbers of tokens that rows should have: in each length bucket from most to few."""
    longest = reader.stage.max_tokens
    sizes = next((axis.sizes for axis in signature.axes if axis.name == reader.axis), (longest,))
    limits = [min(size, longest) for size in sizes if size < longest] + [longest]
    rows = _ROWS if len(limits) > 1 else MAX_ROWS
    found = []
    for below, size in zip([0, *limits[:-1]], limits, strict=True):
        found += [size - (size - below) * i // rows for i in range(rows)]
    return found


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
