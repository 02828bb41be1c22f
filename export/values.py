"""Values as Python callers write them: what is a list, what a whole number, and how to name what is neither."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def as_list(value: Any) -> list[Any] | None:
    """Return the items of what is meant as a list, or None."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return None
    return list(value) if np.ndim(value) <= 1 else None  # type: ignore[arg-type]


def as_ints(values: Iterable[Any]) -> tuple[int, ...]:
    """Return whole numbers as ints, or none of them if one is none."""
    found = [as_int(value) for value in values]
    return () if None in found else tuple(number for number in found if number is not None)


def as_int(value: Any) -> int | None:
    """Return a whole number as an int, NumPy's and written ones too, or None."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else None
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def short_repr(value: Any) -> str:
    """Write a wrong value: as it is where that is short, else its type."""
    text = repr(value)
    plain = isinstance(value, str) or (len(text) <= 60 and "\n" not in text)
    return text if plain else type(value).__name__
