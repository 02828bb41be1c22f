"""A function `apply(params, inputs)` with its params and inputs by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from export.calling import MODES, Adapted, Inputs, Params, bind, modes, required
from export.errors import ExportError, ParamsError
from export.matching import as_array, floating, words
from runtime.tensors import Array


def adapt_function(function: Callable[..., Any], params: Any, inputs: Inputs) -> Adapted:
    """Make params of any tree, and inputs in any form, a function of named ones.

    Args:
      function: takes params, then inputs.
      params: any tree of arrays, or None.
      inputs: shapes and dtypes by name.
    """
    tree = {} if params is None else params
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {"/".join(words(path)) or "params": as_array(leaf) for path, leaf in paths}
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


def _first_that_traces(
    array: Any, mapping: Any, leaves: Mapping[str, Array], inputs: Inputs
) -> Any:
    """Tell `apply(params, x)` from `apply(params, inputs)` with `inputs["x"]` by trying."""
    params = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in leaves.items()}
    try:
        jax.eval_shape(array, params, inputs)
    except (Exception, SystemExit):  # noqa: BLE001 (the user's function; lowering reports it)
        try:
            jax.eval_shape(mapping, params, inputs)
        except (Exception, SystemExit):  # noqa: BLE001 (neither: the array form's error is shown)
            return array
        return mapping
    return array
