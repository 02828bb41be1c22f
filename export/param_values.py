"""The values of params: the dtypes they get, and whether they are finite."""

from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np

from export.errors import ExportError, few_names
from export.matching import floating
from export.storage import PARAM_DTYPES
from runtime.signature import DTYPE_BYTES
from runtime.tensors import Array, numpy_dtype

# How many params a sentence names.
SHOWN = 4


def as_jax_keeps(params: Mapping[str, Array], *, x64: bool) -> tuple[dict[str, Array], list[str]]:
    """Return params in the dtypes that they have in JAX, 64-bit ones only in 64-bit mode, and notes.

    Raises:
      ExportError: a dtype is none that params can have, or values do not fit the narrower one.
    """
    kept: dict[str, Array] = {}
    narrowed = []
    for name, array in params.items():
        if array.dtype.name not in DTYPE_BYTES:
            raise ExportError(
                f"params: {name!r}: expected a dtype of {', '.join(PARAM_DTYPES)}, got {array.dtype}"
            )
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        if x64 or dtype == array.dtype:
            kept[name] = array
            continue
        info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else None
        if info and array.size and not (info.min <= array.min() and array.max() <= info.max):
            raise ExportError(
                f"params: {name!r}: expected values that fit {dtype}, got {array.dtype} beyond it; "
                "export with JAX_ENABLE_X64=1"
            )
        kept[name] = array.astype(dtype)
        narrowed.append(name)
    if not narrowed:
        return kept, []
    shown = few_names(narrowed)
    return kept, [f"64-bit params become 32-bit ones, as JAX makes them in 32-bit mode: {shown}"]


def cast(
    params: Mapping[str, Array], castable: Collection[str], dtype: str | None
) -> dict[str, Array]:
    """Return params of which those that are castable have a dtype; None leaves all as they are."""
    if dtype is None:
        return dict(params)
    to = numpy_dtype(dtype)
    with np.errstate(over="ignore"):  # what that makes infinite is named where answers show it
        return {n: a.astype(to) if n in castable else a for n, a in params.items()}


def not_finite(params: Mapping[str, Array], before: Mapping[str, Array]) -> tuple[str, bool]:
    """Return which params hold NaN or infinities, and how many, as a sentence; '' if none does.

    Beside it, whether that may be meant: infinities alone, as a mask has them, and not of a cast.

    Args:
      params: by name, as the model gets them.
      before: the same ones before they were cast.
    """
    found = {name: counts for name, array in params.items() if (counts := _counts(array))}
    if not found:
        return "", False
    cast = [name for name in found if not _counts(before[name])]
    if len(cast) == len(found):
        dtype = params[cast[0]].dtype
        text = (
            f"params: expected values that {dtype} can hold, got {_listed(found, cast)} once cast to "
            "it; cast to bfloat16, or leave them as they are"
        )
        return text, False
    meant = not cast and not any(_counts(params[name], nan=True) for name in found)
    return f"params: expected finite values, got {_listed(found, list(found))}", meant


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
