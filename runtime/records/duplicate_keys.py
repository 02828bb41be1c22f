"""Keys that stand twice in an object of JSON, of which parsers keep the last without a word."""

import json
from typing import Any


class _Twice(Exception):
    """A key stands twice; its argument is the key."""


def duplicate_key(text: bytes, value: Any) -> str | None:
    """Return a key that stands twice in an object; None where there is none.

    Args:
      text: JSON.
      value: what it was parsed to.

    Raises:
      RecursionError: it is hundreds of objects deep.
    """
    # Every pair has a colon: with as many keys as colons there was no duplicate. Colons in strings
    # only cause the slower check.
    colons = text.count(b":")
    if not colons or (type(value) is dict and colons == _keys(value)):
        return None

    def once(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Twice(key)
            seen.add(key)

    try:
        json.loads(text, object_pairs_hook=once, parse_int=len, parse_float=len)
    except _Twice as error:
        return str(error)
    return None


def _keys(value: dict[str, Any]) -> int:
    """Return the number of pairs in an object and in the objects directly in its values."""
    count = len(value)
    for inner in value.values():
        if type(inner) is dict:
            count += _keys(inner)
        elif type(inner) is list and inner and type(inner[0]) is dict:
            count += sum(_keys(element) for element in inner if type(element) is dict)
    return count
