"""What the values of params tell: whether they are finite."""

from collections.abc import Mapping, Sequence

import numpy as np

from export.matching import floating
from runtime.tensors import Array

# How many params a sentence names.
SHOWN = 4


def not_finite(params: Mapping[str, Array], before: Mapping[str, Array]) -> str:
    """Return which params hold NaN or infinities, and how many, as a sentence; '' if none does.

    Args:
      params: by name, as the model gets them.
      before: the same ones before they were cast.
    """
    found = {name: counts for name, array in params.items() if (counts := _counts(array))}
    if not found:
        return ""
    cast = [name for name in found if not _counts(before[name])]
    if len(cast) == len(found):
        dtype = params[cast[0]].dtype
        return (
            f"params: expected values that {dtype} can hold, got {_listed(found, cast)} once cast to "
            "it; cast to bfloat16, or leave them as they are"
        )
    return f"params: expected finite values, got {_listed(found, list(found))}"


def nan_notes(params: Mapping[str, Array]) -> list[str]:
    """Return a note of the params that hold NaN, though no golden's answer shows it."""
    found = {name: counts for name, array in params.items() if (counts := _counts(array, nan=True))}
    if not found:
        return []
    return [f"the params hold values that are not finite: {_listed(found, list(found))}"]


def _listed(found: Mapping[str, str], names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more params" if len(names) > SHOWN else ""
    return ", ".join(f"{found[name]} in {name!r}" for name in names[:SHOWN]) + more


def _counts(array: Array, *, nan: bool = False) -> str:
    """Return how many values are NaN or infinite, with `nan` only where one is NaN."""
    if not floating(array) or np.isfinite(array).all():
        return ""
    nans, infinities = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nan and not nans:
        return ""
    parts = [f"{n} {what}" for n, what in ((nans, "NaN"), (infinities, "infinite")) if n]
    return f"{' and '.join(parts)} of {array.size}"
