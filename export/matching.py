"""Params from a checkpoint, matched with what the model has."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from export.errors import ParamsError
from export.forms import BOXED, spelled
from export.misfits import (
    alike,
    brief,
    elsewhere,
    kind,
    list_places,
    of_optimizer,
    relation,
    replicated,
    torch_names,
)
from runtime.tensors import Array

Path = tuple[str, ...]

# How many problems of one kind an error shows.
SHOWN = 4


def flatten(tree: Any) -> dict[Path, Any]:
    """Flatten a tree of dicts and lists to leaves by path; None is a leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)[0]
    return {tuple(words(path)): leaf for path, leaf in leaves}


def words(path: Sequence[Any]) -> list[str]:
    """Write the keys of a tree's path; a key that is a tuple, as `flatten_dict` makes, is several."""
    found: list[str] = []
    for key in path:
        several = getattr(key, "key", None)
        found += map(str, several) if isinstance(several, tuple) else [_word(key)]
    return found


def _word(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def aligned(
    expected: Mapping[Path, Any], got: Mapping[Path, Any], boxes: Mapping[Path, Path] | None = None
) -> dict[Path, Any]:
    """Return a checkpoint's leaves by the model's paths, where only their form is another.

    A box that was saved has its array under `value`, and flat names are several keys in one. A
    param that the model itself calls `value` is found as it is. None where the model has nothing
    is left out.

    Args:
      expected: leaves of the model by path.
      got: leaves of the checkpoint.
      boxes: path of an array in a box of the model's own to that of the box.
    """
    forms = {**{spelled(path): path for path in expected}, **(boxes or {})}
    found: dict[Path, Any] = {}
    for path, leaf in got.items():
        place = _place(path, expected, forms)
        taken = place in found or (place != path and place in got)
        if leaf is not None or place in expected:
            found[path if taken else place] = leaf
    return found


def _place(path: Path, expected: Mapping[Path, Any], forms: Mapping[Path, Path]) -> Path:
    for form in (path, spelled(path)):
        cut = form
        while True:
            if cut in expected or cut in forms:
                return cut if cut in expected else forms[cut]
            if cut[-1:] != (BOXED,):
                break
            cut = cut[:-1]
    return path


def match(
    expected: Mapping[Path, Any],
    got: Mapping[Path, Any],
    shaped_by: str = "",
    *,
    beside: Mapping[Path, Any] = MappingProxyType({}),
    unread: Collection[Path] = (),
    saved: Any = None,
    boxes: Mapping[Path, Path] | None = None,
) -> dict[str, Array]:
    """Check params against what the model has.

    Args:
      expected: leaves of the model by path.
      got: leaves of the checkpoint.
      shaped_by: the inputs, where the model's shapes follow from them; they are suspected
        where nothing but shapes is wrong.
      beside: other leaves of the checkpoint, which are shown where something is missing: it may
        be among them by another name.
      unread: paths that the model has too, and that may be there or not.
      saved: all that was restored, where the model's params may be elsewhere.
      boxes: path of an array in a box of the model's own to that of the box.

    Returns:
      Arrays by name, in the model's order.

    Raises:
      ParamsError: says what is wrong with all of them, or lists what is missing, extra, or has
        another shape.
    """
    got = aligned(expected, got, boxes)
    if all(path in got and alike(expected[path], got[path]) for path in expected) and len(
        got
    ) == len(expected):
        return {"/".join(path): as_array(got[path], "/".join(path)) for path in expected}
    if found := _elsewhere(expected, unread, saved, boxes):
        raise ParamsError(found)
    cause = replicated(expected, got)
    if cause and expected.keys() == got.keys():
        raise ParamsError(cause)
    got = {**got, **beside}
    cause = cause or torch_names(expected, got)
    problems = "; ".join(_problems(expected, got, guess=not cause))
    if cause:
        raise ParamsError(f"{cause}; {problems}")
    raise ParamsError(f"params do not fit the model: {problems}{_hint(expected, got, shaped_by)}")


def _problems(expected: Mapping[Path, Any], got: Mapping[Path, Any], *, guess: bool) -> list[str]:
    extra = {path: got[path] for path in got if path not in expected}
    missing = (
        f"{_say(p, a)}{_perhaps(p, a, extra) if guess else ''}"
        for p, a in expected.items()
        if p not in got
    )
    unlike = (
        f"{'/'.join(p)}: expected {brief(expected[p])}, got {brief(got[p])}"
        f"{relation(tuple(expected[p].shape), np.shape(got[p]))}"
        for p in expected
        if p in got and not alike(expected[p], got[p])
    )
    return [
        *_few("missing", missing),
        *_few("extra", (_say(p, a) for p, a in extra.items())),
        *_few("mismatched", unlike),
    ]


def _few(kind: str, problems: Iterable[str]) -> list[str]:
    listed = list(problems)
    shown = [f"{kind} {problem}" for problem in listed[:SHOWN]]
    more = len(listed) - SHOWN
    return [*shown, f"and {more} more {kind}"] if more > 0 else shown


def _perhaps(path: Path, leaf: Any, extra: Mapping[Path, Any]) -> str:
    """Name the extra param that this missing one may be called in the checkpoint."""
    names = [
        "/".join(p) for p, other in extra.items() if alike(leaf, other) and not of_optimizer(p)
    ]
    close = difflib.get_close_matches("/".join(path), names, n=1, cutoff=0.5)
    return f", perhaps the extra {close[0]}" if close else ""


def _elsewhere(
    expected: Mapping[Path, Any],
    unread: Collection[Path],
    saved: Any,
    boxes: Mapping[Path, Path] | None,
) -> str:
    """Return where in the saved tree the model's params are, if they are not where they should be."""
    leaves = flatten(saved)

    def has(inside: Mapping[Path, Any], by: Any) -> bool:
        alone = {path[1:]: leaf for path, leaf in expected.items() if path[:1] == ("params",)}
        spare = {*unread, *(path[1:] for path in unread if path[:1] == ("params",))}
        return any(_has(part, spare, inside, boxes, by) for part in (expected, alone))

    places = elsewhere(expected, leaves, lambda inside: has(inside, alike))
    places = places or elsewhere(expected, leaves, lambda inside: has(inside, lambda *_: True))
    if not places:
        return ""
    tops = ", ".join(sorted({path[0] for path in leaves if path})[:8])
    named = ["/".join(place) for place in places[:SHOWN]]
    return f"params: expected those of the model alone, got {tops}; {list_places(named)}"


def _has(
    wanted: Mapping[Path, Any],
    spare: Collection[Path],
    inside: Mapping[Path, Any],
    boxes: Mapping[Path, Path] | None,
    by: Any,
) -> bool:
    """Whether leaves below a place are those wanted, and none beside them but what the model has too."""
    found = aligned(wanted, inside, boxes)
    # What stands beside the collections of a linen Module may be a TrainState's.
    collections = {path[0] for path in wanted}
    tops = collections if "params" in collections else set()
    others = [
        path
        for path in found
        if path not in wanted and path not in spare
        if (not tops or path[0] in tops) and not is_random(path)
    ]
    return (
        bool(wanted)
        and not others
        and all(path in found and by(leaf, found[path]) for path, leaf in wanted.items())
    )


def is_random(path: Path) -> bool:
    """Whether a path is that of a key or a count of nnx.Rngs."""
    name = path[:-1] if path[-1:] == (BOXED,) else path
    return name[-1:] in (("key",), ("count",))


# What Flax calls the params of its Embed, in linen and in nnx.
_EMBEDDING = "embedding"


def _hint(expected: Mapping[Path, Any], got: Mapping[Path, Any], shaped_by: str) -> str:
    others = [p for p in expected if p in got and tuple(expected[p].shape) != np.shape(got[p])]
    unlike = [relation(tuple(expected[p].shape), np.shape(got[p])) for p in others]
    arrays = all(hasattr(got[p], "shape") for p in expected if p in got)
    if unlike and all(how == ", its transpose" for how in unlike) and expected.keys() == got.keys():
        return (
            "; were they saved by PyTorch, which keeps weights as [out, in]? Then square ones are "
            "transposed too, and no shape shows it"
        )
    if unlike and expected.keys() == got.keys() and all(p[-1] == _EMBEDDING for p in others):
        return "; a model is made with the number of its embeddings, and no input changes it"
    if shaped_by and arrays and unlike and expected.keys() == got.keys():
        return f"; was it trained on {shaped_by}? The inputs give the model its shapes"
    tops = sorted({path[0] for path in got if len(path) > 1} - {path[0] for path in expected})
    likely = [top for top in tops if top in ("params", "ema_params", "model", "state", "target")]
    if not likely:
        return ""
    return f"; the checkpoint has {', '.join(tops[:8])}: pass --params-path {likely[0]}?"


def _say(path: Path, leaf: Any) -> str:
    return f"{'/'.join(path)} {brief(leaf)}"


def floating(array: Any) -> bool:
    """Return whether an array's dtype is floating, ml_dtypes' included."""
    return kind(array) == "floating"


def as_array(leaf: Any, name: str) -> Array:
    """Return a leaf of a checkpoint as a NumPy array of this machine's byte order.

    Raises:
      ParamsError: it is no array and no number; names it.
    """
    if isinstance(leaf, bool | str | bytes | None.__class__):
        shown = "None" if leaf is None else f"the Python {type(leaf).__name__} {leaf!r:.40}"
        raise ParamsError(
            f"params: {name!r}: expected an array, got {shown}; leave out of the params what is "
            "none, and keep it in the model's code"
        )
    if hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ParamsError(f"params: {name!r}: expected an array of numbers, got a random key")
    array = np.asarray(leaf)
    if array.dtype == np.dtype(object):
        raise ParamsError(f"params: {name!r}: expected an array, got {type(leaf).__name__}")
    # A checkpoint of another machine can hold its bytes the other way round.
    return array.astype(array.dtype.newbyteorder("="), copy=False)
