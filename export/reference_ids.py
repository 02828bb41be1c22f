"""The training code's own way from texts to ids, compared with the tokenizer in the bundle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from export.errors import ExportError, format_error
from runtime.preprocessing.texts import TextReader
from runtime.tensors import Array

_SHOWN_IDS = 12


def refuse_other_ids(
    reference: Callable[..., Any], columns: Mapping[str, Sequence[Any]], reader: TextReader
) -> None:
    """Compare the training code's own preparation with the tokenizer's, on the golden texts.

    Args:
      reference: takes a list of texts, or two of them for pairs, and returns ids by row, or a
        mapping with `input_ids` and perhaps `attention_mask` and `token_type_ids`.
      columns: raw input to its golden texts.
      reader: of the stage.

    Raises:
      ExportError: it fails, or gives other ids for a text.
    """
    texts = [columns[name] for name in reader.stage.raw_names]
    try:
        given = reference(*map(list, texts))
    except Exception as error:
        raise ExportError(f"reference_preprocess: {format_error(error)}") from error
    tokens = reader.read(columns, lambda name, i: f"golden: {name!r} of row {i}")
    found = dict(given) if hasattr(given, "keys") else {"input_ids": given}
    if "input_ids" not in found:
        raise ExportError(
            f"reference_preprocess: expected ids by row, or 'input_ids', got {sorted(found)}"
        )
    names = ["input_ids", *(["token_type_ids"] if reader.stage.token_type_ids else [])]
    by_name = {
        name: _by_row(name, found[name], len(tokens))
        for name in (*names, "attention_mask")
        if name in found
    }
    masks: Sequence[Array | None] = by_name.pop("attention_mask", [])
    masks = masks or [None] * len(tokens)
    for name, rows_of in by_name.items():
        pad = reader.pad_id if name == "input_ids" else 0
        for i, (given_row, mask, row) in enumerate(zip(rows_of, masks, tokens, strict=True)):
            own = row.ids if name == "input_ids" else row.type_ids
            _compare(f"golden text {i}: expected {name}", own, given_row, mask, pad)


def _compare(expected: str, own: Array, given: Array, mask: Array | None, pad: float) -> None:
    """Refuse a row that is another one. What its mask leaves out is padding, else what is behind."""
    count = len(own)
    real = given[:count] if mask is None else given[mask.astype(bool)]
    padding = given[count:] if mask is None else given[:0]
    if not np.array_equal(real, own) or (padding != pad).any():
        raise ExportError(
            f"reference_preprocess: {expected} {_shown(given if mask is None else real)}, as the "
            f"training code makes them, got {_shown(own)} of the tokenizer"
        )


def _by_row(name: str, value: Any, rows: int) -> list[Array]:
    found: list[Array]
    try:
        found = [np.asarray(row).astype(np.int64).reshape(-1) for row in value]
    except (TypeError, ValueError):
        found = []
    if len(found) != rows:
        raise ExportError(
            f"reference_preprocess: expected {name} for each of {rows} texts, got {len(found)}"
        )
    return found


def _shown(ids: Array) -> str:
    more = ", …" if len(ids) > _SHOWN_IDS else ""
    return f"[{', '.join(map(str, ids[:_SHOWN_IDS].tolist()))}{more}]"
