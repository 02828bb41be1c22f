"""Params from a checkpoint, held against what the model has."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from export.errors import ParamsError
from runtime.tensors import Array

Path = tuple[str, ...]

# How many problems of one kind an error shows.
SHOWN = 4


def flatten(tree: Any) -> dict[Path, Any]:
    """Flatten a tree of dicts and lists to leaves by path; nnx's trailing `value` is dropped."""
    found = {
        tuple(words(path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    if found and all(path[-1:] == ("value",) for path in found):
        return {path[:-1]: leaf for path, leaf in found.items()}
    return found


def words(path: Sequence[Any]) -> list[str]:
    """Write the keys of a tree's path."""
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def match(
    expected: Mapping[Path, Any], got: Mapping[Path, Any], shaped_by: str = ""
) -> dict[str, Array]:
    """Hold params against what the model has.

    Args:
      expected: leaves of the model by path.
      got: leaves of the checkpoint.
      shaped_by: the inputs, where the model's shapes follow from them; they are suspected
        where nothing but shapes is wrong.

    Returns:
      Arrays by name, in the model's order.

    Raises:
      ParamsError: lists what is missing, extra, or has another shape.
    """
    extra = {path: got[path] for path in got if path not in expected}
    missing = (f"{_say(p, a)}{_perhaps(p, a, extra)}" for p, a in expected.items() if p not in got)
    unlike = (
        f"{'/'.join(p)}: expected {_brief(expected[p])}, got {_brief(got[p])}"
        for p in expected
        if p in got and not _alike(expected[p], got[p])
    )
    problems = [
        *_few("missing", missing),
        *_few("extra", (_say(p, a) for p, a in extra.items())),
        *_few("mismatched", unlike),
    ]
    if problems:
        raise ParamsError(
            f"params do not fit the model: {'; '.join(problems)}{_hint(expected, got, shaped_by)}"
        )
    return {"/".join(path): as_array(got[path]) for path in expected}


def _few(kind: str, problems: Iterable[str]) -> list[str]:
    listed = list(problems)
    shown = [f"{kind} {problem}" for problem in listed[:SHOWN]]
    more = len(listed) - SHOWN
    return [*shown, f"and {more} more {kind}"] if more > 0 else shown


def _perhaps(path: Path, leaf: Any, extra: Mapping[Path, Any]) -> str:
    """Name the extra param that this missing one may be called in the checkpoint."""
    alike = ["/".join(p) for p, other in extra.items() if _alike(leaf, other)]
    close = difflib.get_close_matches("/".join(path), alike, n=1, cutoff=0.5)
    return f", perhaps the extra {close[0]}" if close else ""


def _hint(expected: Mapping[Path, Any], got: Mapping[Path, Any], shaped_by: str) -> str:
    shapes = any(tuple(expected[p].shape) != np.shape(got[p]) for p in expected if p in got)
    if shaped_by and shapes and expected.keys() == got.keys():
        return f"; was it trained on {shaped_by}? The inputs give the model its shapes"
    tops = sorted({path[0] for path in got if len(path) > 1} - {path[0] for path in expected})
    likely = [top for top in tops if top in ("params", "ema_params", "model", "state", "target")]
    if not likely:
        return ""
    return f"; the checkpoint has {', '.join(tops[:8])}: pass --params-path {likely[0]}?"


def _alike(a: Any, b: Any) -> bool:
    return tuple(a.shape) == tuple(np.shape(b)) and floating(a) == floating(b)


def _say(path: Path, leaf: Any) -> str:
    return f"{'/'.join(path)} {_brief(leaf)}"


def _brief(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    return f"{dtype}{list(np.shape(leaf))}"


def floating(array: Any) -> bool:
    """Say whether an array's dtype is floating, ml_dtypes' included."""
    dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.floating))


def as_array(leaf: Any) -> Array:
    """Give a leaf of a checkpoint as a NumPy array of this machine's byte order."""
    array = np.asarray(leaf)
    if array.dtype == np.dtype(object):
        raise ParamsError(f"params: expected arrays, got {type(leaf).__name__}")
    # A checkpoint of another machine can hold its bytes the other way round.
    return array.astype(array.dtype.newbyteorder("="), copy=False)
