"""Why params do not fit a model: what follows from names, shapes and values alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Path = tuple[str, ...]
Fits = Callable[[Mapping[Path, Any]], bool]

# What PyTorch calls params, and what Flax calls none.
_TORCH = ("weight", "running_mean", "running_var", "num_batches_tracked", "in_proj_weight")
_FLAX = ("kernel", "scale", "embedding", "mean", "var")
# Moments of optimizers have the names and shapes of params, and are none.
OPTIMIZER = ("opt_state", "optimizer", "optimizer_state", "mu", "nu", "trace")


def replicated(expected: Mapping[Path, Any], got: Mapping[Path, Any]) -> str:
    """Return what there is to say of params that all have one more leading axis, else ''."""
    common = [path for path in expected if path in got]
    shapes = {path: np.shape(got[path]) for path in common}
    sizes = {shape[:1] for shape in shapes.values()}
    if len(sizes) != 1 or any(shapes[p][1:] != tuple(expected[p].shape) for p in common):
        return ""
    ((size,),) = sizes
    shown = f"{'/'.join(common[0])} is {brief(got[common[0]])}, of the model {brief(expected[common[0]])}"
    unlike = {path for path in common if not repeats(got[path])}
    if not unlike:
        return (
            f"params: replicated over devices: each has the same extra leading axis of {size}, "
            f"equal values along it ({shown}), as pmap's state has; {UNREPLICATE}"
        )
    if any(path[0] == "params" for path in common) and not any(p[0] == "params" for p in unlike):
        kinds = ", ".join(sorted({path[0] for path in unlike}))
        return (
            f"params: replicated over devices: each has the same extra leading axis of {size} "
            f"({shown}), as pmap's state has, and those of {kinds} differ along it: average these "
            f"over it, a.mean(0), then {UNREPLICATE}"
        )
    return (
        f"params: each has the same extra leading axis of {size} and other values along it "
        f"({shown}): an ensemble, layers of a scan, or devices that went apart; pass the one that "
        "is meant, or a model with that axis"
    )


UNREPLICATE = (
    "take the first of each, jax.tree.map(lambda a: a[0], params), which is "
    "flax.jax_utils.unreplicate"
)


def repeats(array: Any) -> bool:
    """Whether an array has the same bits at every place of its leading axis."""
    rows = np.asarray(array)
    first = rows[:1].tobytes()
    return all(rows[i : i + 1].tobytes() == first for i in range(1, len(rows)))


def elsewhere(expected: Mapping[Path, Any], got: Mapping[Path, Any], fits: Fits) -> list[Path]:
    """Return where in a saved tree the params of a model are; none if they are at its top.

    Args:
      expected: leaves of the model by path; those of a linen Module begin with a collection.
      got: all leaves of the saved tree by path.
      fits: whether leaves by path, below one place of the tree, are those of the model.

    Returns:
      Places for `params_path`, outermost first; optimizers' moments only where they are named
      as averages.
    """
    first = next(iter(expected), ())
    of_linen = first[:1] == ("params",)
    ends = {first, first[1:]} if of_linen else {first}
    taken = ((), ("params",)) if of_linen else ((),)
    found: list[Path] = []
    for place in sorted({place for path in got for place in _above(path, ends)}, key=_order):
        inside = {path[len(place) :]: got[path] for path in got if path[: len(place)] == place}
        whole = any(place[: len(known)] == known for known in found)
        if whole or of_optimizer(place) or not fits(inside):
            continue
        if place in taken:
            return []
        found.append(place)
    return found


def _above(path: Path, ends: set[Path]) -> list[Path]:
    """Return the places in which a path, or what it is a box of, ends with one of the ends."""
    cuts = [path, *([path[:-1]] if len(path) > 1 else [])]
    return [cut[: -len(end)] for cut in cuts for end in ends if end and cut[-len(end) :] == end]


def _order(place: Path) -> tuple[int, Path]:
    return len(place), place


def list_places(places: Sequence[str]) -> str:
    """Return where params are in a tree, and which flag takes them from there."""
    if len(places) == 1:
        return f"the model's are under {places[0]}: pass --params-path {places[0]}"
    return (
        f"the model's are under {', '.join(places)}: pass the one that is meant with --params-path"
    )


def of_optimizer(place: Path) -> bool:
    """Whether a place in a tree is among the moments of an optimizer, and is no average."""
    averages = any(sign in word for word in place[-2:] for sign in ("ema", "avg", "average"))
    return not averages and any(word in OPTIMIZER for word in place)


def torch_names(expected: Mapping[Path, Any], got: Mapping[Path, Any]) -> str:
    """Return what there is to say of params with PyTorch's names, else ''."""
    theirs = [n for n in _TORCH if any(path[-1:] == (n,) for path in got if path not in expected)]
    ours = [n for n in _FLAX if any(path[-1:] == (n,) for path in expected if path not in got)]
    if not theirs or not ours or any(path[-1:] == (n,) for path in expected for n in theirs):
        return ""
    return (
        f"params have PyTorch's names ({', '.join(theirs)}) where the model has Flax's "
        f"({', '.join(ours)}): expected params of Flax; convert them first, and their axes: weights "
        "of PyTorch are [out, in] and [out, in, height, width]"
    )


def relation(wanted: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return how a shape is related to the one that is wanted, as the end of a sentence."""
    if shape == wanted:
        return ""
    if len(shape) == 2 and shape == wanted[::-1]:
        return ", its transpose"
    if shape[1:] == wanted:
        return f", an extra leading axis of {shape[0]}"
    if sorted(shape) == sorted(wanted):
        return ", its axes in another order"
    return ", as many values in another shape" if math.prod(shape) == math.prod(wanted) else ""


def brief(leaf: Any) -> str:
    """Return a leaf's dtype and shape, or the type of what is no array."""
    if hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(np.shape(leaf))}"
    return "None" if leaf is None else f"a Python {type(leaf).__name__}"


def alike(a: Any, b: Any) -> bool:
    """Whether a leaf has the shape and the kind of dtype that the model has."""
    return tuple(a.shape) == tuple(np.shape(b)) and kind(a) == kind(b)


def kind(leaf: Any) -> str:
    """Return what kind of numbers a leaf holds: floating, complex, or other; '' for no numbers."""
    if leaf is None or isinstance(leaf, str | bytes):
        return ""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if jax.numpy.issubdtype(dtype, jax.numpy.complexfloating):
        return "complex"
    return "floating" if jax.numpy.issubdtype(dtype, jax.numpy.floating) else "other"
