"""A function `apply(params, inputs)` with its params and inputs by name."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from export.calling import MODES, Adapted, Inputs, Params, bind, modes, required
from export.checkpoints import as_tree
from export.errors import ExportError, ParamsError, few_names, told
from export.forms import alternatives
from export.matching import as_array, flatten, floating, words
from export.misfits import OPTIMIZER, UNREPLICATE, brief, repeats, told_places
from runtime.tensors import Array

# What the part of a tree may be called that has the params.
_LIKELY = ("params", "model", "state", "variables", "target", "ema", "ema_params")


def adapt_function(
    function: Callable[..., Any],
    params: Any,
    inputs: Inputs,
    around: Sequence[Mapping[str, Any]] = (),
) -> Adapted:
    """Make params of any tree, and inputs in any form, a function of named ones.

    Params are taken in the form that they are in; where the function does not trace with that,
    in the first other one, such as unboxed or flat, with which it does.

    Args:
      function: takes params, then inputs.
      params: any tree of arrays, or None.
      inputs: shapes and dtypes by name.
      around: what the params were taken out of, the innermost first.

    Raises:
      ParamsError: a leaf is no array; or the params are those of a part of the tree.
      ExportError: it takes no inputs behind its params.
    """
    tree = {} if params is None else params
    try:
        adapted = _with_tree(function, tree, inputs)
    except ParamsError as odd:
        places = _places(function, around[-1] if around else tree, inputs, odd)
        if not places:
            raise
        cause = str(odd).partition("; ")[0]
        raise ParamsError(f"{cause}; {told_places(places)}") from None
    _refuse_replicas(function, tree, inputs)
    error = _untraceable(adapted, inputs)
    if error is None:
        return adapted
    for other in alternatives(tree):
        made = _with_tree(function, other, inputs)
        if _untraceable(made, inputs) is None:
            return made
    _refuse_params(function, tree, inputs, error, around)
    return adapted  # tracing it for a program says what is wrong


def _with_tree(function: Callable[..., Any], tree: Any, inputs: Inputs) -> Adapted:
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    named = [("/".join(words(path)) or "params", leaf) for path, leaf in paths]
    leaves = {name: as_array(leaf, name) for name, leaf in named}
    if len(leaves) != len(paths):
        raise ParamsError("params: expected different names for different params")
    castable = frozenset(
        n for n, a in leaves.items() if floating(a) and "batch_stats" not in n.split("/")
    )

    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 2 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        names = ", ".join(p.name for p in parameters)
        raise ExportError(f"model: expected a function apply(params, inputs), got one of ({names})")
    switches = modes(function)

    def with_form(form: Callable[[Inputs], tuple[tuple[Any, ...], dict[str, Any]]]) -> Any:
        def apply(named: Params, given: Inputs) -> Any:
            args, kwargs = form(given)
            tree = jax.tree.unflatten(treedef, [named[n] for n in leaves])
            return function(tree, *args, **kwargs, **switches)

        return apply

    apply = with_form(lambda given: bind(function, given))
    needed = [p.name for p in parameters[1:] if required(p) and p.name not in MODES]
    if len(inputs) == len(needed) == 1 and needed[0] not in inputs:
        whole = with_form(lambda given: ((dict(given),), {}))
        apply = _first_that_traces(apply, whole, leaves, inputs)
    return Adapted(apply, leaves, castable)


def _untraceable(adapted: Adapted, inputs: Inputs) -> BaseException | None:
    """Return what tracing raises, whatever the user's function does; None if it works."""
    try:
        jax.eval_shape(adapted.apply, _shapes(adapted.params), inputs)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (the user's function)
        return error
    return None


def _shapes(params: Mapping[str, Array]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return what a trace needs to know of params, 64-bit ones as JAX will have them."""
    return {
        name: jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype))
        for name, a in params.items()
    }


def _refuse_replicas(function: Callable[..., Any], tree: Any, inputs: Inputs) -> None:
    """Raise ParamsError for params that are all several times in one more leading axis.

    Params of equal rows may be meant; so the function has to give one row for each row of input
    with the first of each alone, and not with them all.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    sizes = {np.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or () in sizes or not all(map(repeats, leaves)):
        return
    ((size,),) = sizes
    given = {
        name: jax.ShapeDtypeStruct((size + 1, *spec.shape[1:]), spec.dtype)
        for name, spec in inputs.items()
    }
    first = jax.tree.map(lambda leaf: leaf[0] if hasattr(leaf, "shape") else leaf, tree)
    if _gives_rows(function, first, given) and not _gives_rows(function, tree, given):
        named = {"/".join(path): leaf for path, leaf in flatten(tree).items()}
        name, leaf = next((n, a) for n, a in named.items() if hasattr(a, "shape"))
        raise ParamsError(
            f"params: replicated over devices: each has the same extra leading axis of {size}, equal "
            f"values along it ({name} is {brief(leaf)}), as pmap's state has; {UNREPLICATE}"
        )


def _gives_rows(function: Callable[..., Any], tree: Any, inputs: Inputs) -> bool:
    """Whether a function traces, and gives a row for each row of its inputs."""
    rows = {spec.shape[0] for spec in inputs.values()}
    adapted = _with_tree(function, tree, inputs)
    try:
        outputs = jax.eval_shape(adapted.apply, _shapes(adapted.params), inputs)
    except (Exception, SystemExit):  # noqa: BLE001 (the user's function)
        return False
    return all({*leaf.shape[:1]} == rows for leaf in jax.tree.leaves(outputs))


def _refuse_params(
    function: Callable[..., Any],
    tree: Any,
    inputs: Inputs,
    error: BaseException,
    around: Sequence[Mapping[str, Any]],
) -> None:
    """Raise ParamsError where the params are why a function does not trace."""
    if places := _places(function, around[-1] if around else tree, inputs, error):
        shown = few_names(sorted(map(str, tree))) if isinstance(tree, Mapping) else "another tree"
        raise ParamsError(
            f"params: expected those that the model's code reads, got {shown} ({told(error)}); "
            f"{told_places(places)}"
        )
    leaves = flatten(tree)
    numbers = {path: leaf for path, leaf in leaves.items() if _is_number(leaf)}
    if numbers and _traces_with_numbers(function, tree, inputs):
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
            f"{told(error)}"
        )


def _traces(function: Callable[..., Any], tree: Any, inputs: Inputs) -> bool:
    for form in (tree, *alternatives(tree)):
        try:
            if _untraceable(_with_tree(function, form, inputs), inputs) is None:
                return True
        except ParamsError:
            continue  # it has a leaf that is no array
    return False


def _traces_with_numbers(function: Callable[..., Any], tree: Any, inputs: Inputs) -> bool:
    """Whether a function traces where Python's numbers among its params stay such."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = {
        str(i): as_array(leaf, str(i)) for i, leaf in enumerate(leaves) if not _is_number(leaf)
    }

    def with_numbers(named: Params, *args: Any, **kwargs: Any) -> Any:
        whole = [
            named[str(i)] if str(i) in named else np.asarray(leaf).item()
            for i, leaf in enumerate(leaves)
        ]
        return function(jax.tree.unflatten(treedef, whole), *args, **kwargs)

    wrapped = functools.wraps(function)(with_numbers)
    return _untraceable(_with_tree(wrapped, arrays, inputs), inputs) is None


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a number of Python's, or may have been one before it was saved."""
    if isinstance(leaf, np.ndarray | np.generic):
        return np.ndim(leaf) == 0 and leaf.dtype.kind in "iuf"
    return type(leaf) in (int, float)


def _places(
    function: Callable[..., Any], root: Any, inputs: Inputs, error: BaseException
) -> list[str]:
    """Return the parts of a tree with which a function traces that does not with all of it.

    Only those are tried that have the key it did not find, or the name of params.
    """
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    found: list[str] = []
    for place, part in _parts(root):
        inside = any(place.startswith(f"{outer}/") for outer in found)
        likely = key in part or "params" in part or place.split("/")[-1] in _LIKELY
        if likely and not inside and _traces(function, part, inputs):
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


def _first_that_traces(
    array: Any, mapping: Any, leaves: Mapping[str, Array], inputs: Inputs
) -> Any:
    """Tell `apply(params, x)` from `apply(params, inputs)` with `inputs["x"]` by trying."""
    params = _shapes(leaves)
    try:
        jax.eval_shape(array, params, inputs)
    except (Exception, SystemExit):  # noqa: BLE001 (the user's function; lowering reports it)
        try:
            jax.eval_shape(mapping, params, inputs)
        except (Exception, SystemExit):  # noqa: BLE001 (neither: the array form's error is shown)
            return array
        return mapping
    return array
