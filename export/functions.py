"""A function `apply(params, inputs)` with its params and inputs by name."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from export.calling import MODES, Adapted, Inputs, Params, bind, modes, required
from export.errors import ExportError, ParamsError, few_names, told
from export.forms import alternatives
from export.matching import as_array, flatten, floating, words
from export.misfits import OPTIMIZER
from runtime.tensors import Array


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
    adapted = _with_tree(function, tree, inputs)
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


def _refuse_params(
    function: Callable[..., Any],
    tree: Any,
    inputs: Inputs,
    error: BaseException,
    around: Sequence[Mapping[str, Any]],
) -> None:
    """Raise ParamsError where the params are why a function does not trace."""
    root = around[-1] if around else tree
    if isinstance(error, KeyError) and isinstance(root, Mapping):
        places = [
            name for name, part in _with_key(root, error.args[0]) if _traces(function, part, inputs)
        ]
        if places:
            choice = places[0] if len(places) == 1 else "the one that is meant"
            raise ParamsError(
                f"params: expected {error.args[0]!r} at the top, as the model's code reads it, got "
                f"{few_names(sorted(map(str, tree)))}; it is under {' and '.join(places[:4])}: pass "
                f"--params-path {choice}"
            )
    leaves = flatten(tree)
    numbers = {path: leaf for path, leaf in leaves.items() if type(leaf) in (int, float)}
    if numbers and _traces_with_numbers(function, tree, inputs):
        path, number = next(iter(numbers.items()))
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
    return any(
        _untraceable(_with_tree(function, form, inputs), inputs) is None
        for form in (tree, *alternatives(tree))
        if all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(form))
    )


def _traces_with_numbers(function: Callable[..., Any], tree: Any, inputs: Inputs) -> bool:
    """Whether a function traces where Python's numbers among its params stay such."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = {
        str(i): as_array(leaf, str(i))
        for i, leaf in enumerate(leaves)
        if type(leaf) not in (int, float)
    }

    def with_numbers(named: Params, *args: Any, **kwargs: Any) -> Any:
        whole = [named.get(str(i), leaf) for i, leaf in enumerate(leaves)]
        return function(jax.tree.unflatten(treedef, whole), *args, **kwargs)

    wrapped = functools.wraps(function)(with_numbers)
    return _untraceable(_with_tree(wrapped, arrays, inputs), inputs) is None


def _with_key(tree: Mapping[str, Any], key: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parts of a tree that have a key, by their place, no moments of optimizers."""
    for name, part in tree.items():
        if not isinstance(part, Mapping) or name in OPTIMIZER:
            continue
        place = f"{above}/{name}".strip("/")
        if key in part:
            yield place, part
        yield from _with_key(part, key, place)


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
