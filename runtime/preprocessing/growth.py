"""How much longer a tokenizer.json can make a text, by its normalizer alone.

A rule that puts a hundred characters in the place of one, five times in a row, makes ten thousand
million of each: no memory holds that, and whether it happens is up to the text. So it is found
in the file, before any text is.
"""

import json
from typing import Any

from runtime.preprocessing.tokenizer import TokenizerError

# Characters for one. Unicode's own normal forms make 18 at most.
_MAX_GROWTH = 1000


def expect_bounded_growth(data: bytes) -> None:
    """Refuse a tokenizer.json whose normalizer makes texts many times as long.

    Raises:
      TokenizerError: it does, or the file is no JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise TokenizerError("a file that is no JSON") from None
    if not isinstance(value, dict):
        raise TokenizerError("JSON that is no object")
    try:
        growth = _growth(value.get("normalizer"))
    except RecursionError:
        raise TokenizerError("normalizers that are nested too deep") from None
    if growth > _MAX_GROWTH:
        raise TokenizerError(
            f"a normalizer that can make more than {_MAX_GROWTH:,} characters of one"
        )


def _growth(normalizer: Any) -> int:
    if not isinstance(normalizer, dict):
        return 1
    if normalizer.get("type") == "Sequence":
        growth = 1
        members = normalizer.get("normalizers")
        for member in members if isinstance(members, list) else ():
            growth = min(growth * _growth(member), _MAX_GROWTH + 1)
        return growth
    if normalizer.get("type") != "Replace":
        return 1
    content = normalizer.get("content")
    length = len(content) if isinstance(content, str) else 1
    pattern = normalizer.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return max(1, -(-length // len(literal)))
    return 1 + length  # a pattern can match before each character
