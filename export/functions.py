"""A function `apply(params, inputs)` with its params and inputs by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from export.calling import Adapted, Call, Inputs, Params, calls, required
from export.errors import ExportError, ParamsError
from export.matching import as_array, floating, words
from export.reading import Apply, first_read, of_shape, read_params, traces, unread
from export.switches import explained, in_call


def adapt_function(
    function: Callable[..., Any],
    params: Any,
    buckets: Sequence[Inputs],
    call_args: Mapping[str, Any],
) -> Adapted:
    """Make params of any tree, and inputs in any form, a function of named ones.

    Args:
      function: takes params, then inputs.
      params: any tree of arrays, or None.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
      call_args: arguments that are no inputs, by name.
    """
    tree = {} if params is None else params
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {"/".join(words(path)) or "params": as_array(leaf) for path, leaf in paths}
    if len(leaves) != len(paths):
        raise ParamsError("params: expected different names for different params")
    castable = frozenset(
        n for n, a in leaves.items() if floating(a) and "batch_stats" not in n.split("/")
    )
    inputs = buckets[0]

    def form(call: Call, *, whole: bool) -> Any:
        def apply(named: Params, given: Inputs) -> Any:
            tree = jax.tree.unflatten(treedef, [named[n] for n in leaves])
            args, kwargs = ((dict(given),), call.switches) if whole else call.bind(given)
            return function(tree, *args, **kwargs)

        return apply

    ways = _ways(function, inputs, call_args)
    forms = [(call, form(call, whole=False)) for call in ways]
    needed = [p.name for p in ways[0].free(inputs) if required(p)]
    if len(inputs) == len(needed) == 1 and needed[0] not in inputs:
        # Whether it is `apply(params, x)`, or `apply(params, inputs)` with `inputs["x"]`.
        forms.append((ways[0], form(ways[0], whole=True)))
    shapes = {name: of_shape(array) for name, array in leaves.items()}

    def read(call: Call, apply: Apply) -> set[str]:
        def suspects() -> list[str]:
            def quiet(other: Call) -> bool:
                return traces(form(other, whole=False), shapes, inputs)

            return in_call(call, inputs, quiet)

        with explained(getattr(function, "__name__", "the function"), suspects):
            return read_params(apply, shapes, buckets)

    _, apply, found = first_read(forms, read)
    # What was passed by hand is kept: a function may come with the params of several.
    return Adapted(apply, leaves, castable, unread(set(leaves) - found, leaves))


def _ways(
    function: Callable[..., Any], inputs: Inputs, call_args: Mapping[str, Any]
) -> tuple[Call, ...]:
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 2 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        names = ", ".join(p.name for p in parameters)
        raise ExportError(f"model: expected a function apply(params, inputs), got one of ({names})")
    return calls(function, inputs, call_args)
