"""Why a function does not trace with its params: what can be found out by trying others."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from export.calling import Inputs, Params
from export.checkpoints import as_tree
from export.errors import ParamsError, few_names, format_error
from export.matching import as_array, flatten
from export.misfits import OPTIMIZER, UNREPLICATE, brief, list_places, repeats
from runtime.tensors import Array

# What the part of a tree may be called that has the params.
_LIKELY = ("params", "model", "state", "variables", "target", "ema", "ema_params")

# Whether a function can be traced with a tree of params.
Traces = Callable[[Any], bool]
# Whether it can be with params by name, and what makes them the tree that it takes.
TracesNamed = Callable[[dict[str, Array], Callable[[Params], Any]], bool]


def refuse_replicas(tree: Any, inputs: Inputs, gives_rows: Callable[[Any, Inputs], bool]) -> None:
    """Raise ParamsError for params that are all several times in one more leading axis.

    Params of equal rows may be meant; so the function has to return one row for each row of input
    with the first of each alone, and not with them all.

    Args:
      tree: the params.
      inputs: shapes and dtypes of the inputs by name.
      gives_rows: whether the function does so with a tree and inputs.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    sizes = {np.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or () in sizes or not all(map(repeats, leaves)):
        return
    if not any(np.ndim(leaf) > 2 or not repeats(np.ravel(leaf)) for leaf in leaves):
        return  # of a matrix of one value, such as ones, every row is the same
    ((size,),) = sizes
    given = {
        name: jax.ShapeDtypeStruct((size + 1, *spec.shape[1:]), spec.dtype)
        for name, spec in inputs.items()
    }
    first = jax.tree.map(lambda leaf: leaf[0] if hasattr(leaf, "shape") else leaf, tree)
    if gives_rows(first, given) and not gives_rows(tree, given):
        named = {"/".join(path): leaf for path, leaf in flatten(tree).items()}
        name, leaf = next((n, a) for n, a in named.items() if hasattr(a, "shape"))
        raise ParamsError(
            f"params: replicated over devices: each has the same extra leading axis of {size}, equal "
            f"values along it ({name} is {brief(leaf)}), as pmap's state has; {UNREPLICATE}"
        )


def refuse_params(
    tree: Any, root: Any, error: BaseException, traces: Traces, traces_named: TracesNamed
) -> None:
    """Raise ParamsError where the params are why a function does not trace.

    Args:
      tree: the params.
      root: all that was restored.
      error: what tracing raised.
      traces: whether the function can be traced with a tree.
      traces_named: whether it can be with params by name.
    """
    if places := other_places(root, error, traces):
        shown = few_names(sorted(map(str, tree))) if isinstance(tree, Mapping) else "another tree"
        raise ParamsError(
            f"params: expected those that the model's code reads, got {shown} ({format_error(error)}); "
            f"{list_places(places)}"
        )
    leaves = flatten(tree)
    numbers = {path: leaf for path, leaf in leaves.items() if _is_number(leaf)}
    if numbers and _traces_with_numbers(tree, traces_named):
        path, number = next((path, np.asarray(leaf).item()) for path, leaf in numbers.items())
        raise ParamsError(
            f"params: {'/'.join(path)!r}: expected an array, got the Python "
            f"{type(number).__name__} {number!r}, which the model's code needs as it is, and params "
            f"are arrays in a program: leave it out of the params, and keep it in the code"
        )
    absent = ["/".join(path) for path, leaf in leaves.items() if leaf is None]
    if absent and "None" in str(error):
        raise ParamsError(
            f"params: {absent[0]!r}: expected an array, got None, and the model's code uses it: "
            f"{format_error(error)}"
        )


def _traces_with_numbers(tree: Any, traces_named: TracesNamed) -> bool:
    """Whether a function traces where Python's numbers among its params stay such."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = {
        str(i): as_array(leaf, str(i)) for i, leaf in enumerate(leaves) if not _is_number(leaf)
    }

    def rebuild(named: Params) -> Any:
        whole = [
            named[str(i)] if str(i) in named else np.asarray(leaf).item()
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(treedef, whole)

    return traces_named(arrays, rebuild)


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a number of Python's, or may have been one before it was saved."""
    if isinstance(leaf, np.ndarray | np.generic):
        return np.ndim(leaf) == 0 and leaf.dtype.kind in "iuf"
    return type(leaf) in (int, float)


def other_places(root: Any, error: BaseException, traces: Traces) -> list[str]:
    """Return the parts of a tree with which a function traces that does not with all of it.

    Only those are tried that have the key it did not find, or the name of params.

    Args:
      root: all that was restored.
      error: what tracing with the params raised.
      traces: whether the function can be traced with a tree.
    """
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    found: list[str] = []
    for place, part in _parts(root):
        inside = any(place.startswith(f"{outer}/") for outer in found)
        likely = key in part or "params" in part or place.split("/")[-1] in _LIKELY
        if likely and not inside and traces(part):
            found.append(place)
    return found


def _parts(tree: Any, above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the mappings inside a tree by their place, but no moments of optimizers."""
    tree = as_tree(tree)
    for name, part in tree.items() if isinstance(tree, Mapping) else ():
        whole = as_tree(part)
        if isinstance(whole, Mapping) and name not in OPTIMIZER:
            place = f"{above}/{name}".strip("/")
            yield place, whole
            yield from _parts(whole, place)
