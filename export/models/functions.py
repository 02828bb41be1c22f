"""A function `apply(params, inputs)` with its params and inputs by name."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from export.calling import Adapted, Call, Inputs, Params, calls, required
from export.errors import ExportError, ParamsError
from export.forms import alternatives
from export.matching import as_array, floating, words
from export.misfits import list_places
from export.models.frameworks import closed_over, framework_of
from export.models.wrong_params import other_places, refuse_params, refuse_replicas
from export.reading import Apply, answers, first_read, of_shape, read_params, traces, unread
from export.switches import explained, in_call
from runtime.tensors import Array


def adapt_function(
    function: Callable[..., Any],
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]],
    call_args: Mapping[str, Any],
) -> Adapted:
    """Make params of any tree, and inputs in any form, a function of named ones.

    Params are taken in the form that they are in; where the function does not trace with that,
    in the first other one, such as unboxed or flat, with which it does.

    Args:
      function: takes params, then inputs.
      params: any tree of arrays, or None.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
      around: what the params were taken out of, the innermost first.
      call_args: arguments that are no inputs, by name.

    Raises:
      ParamsError: a leaf is no array; or the params are why the function does not trace.
      ExportError: it takes no inputs behind its params, or is still in training mode.
      Exception: it does not trace; what it raised.
    """
    tree = {} if params is None else params
    root = around[-1] if around else tree
    one = _Function(function, _ways(function, buckets[0], call_args), buckets)
    try:
        given = one.of_tree(tree)
    except ParamsError as odd:
        places = other_places(root, odd, one.traces)
        if not places:
            raise
        cause = str(odd).partition("; ")[0]
        raise ParamsError(f"{cause}; {list_places(places)}") from None
    refuse_replicas(tree, buckets[0], one.gives_rows)
    try:
        return given.read()
    except ExportError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        for other in alternatives(tree):
            if one.traces_as_it_is(other):
                return one.of_tree(other).read()
        refuse_params(tree, root, error, one.traces, lambda *how: _Named(one, *how).traces())
        raise


def _ways(
    function: Callable[..., Any], inputs: Inputs, call_args: Mapping[str, Any]
) -> tuple[Call, ...]:
    inner = inspect.unwrap(function)
    if wrapped := framework_of(inner):
        raise ExportError(
            f"model: expected the {type(inner).__name__} of {wrapped} itself, got a function that wraps "
            "it, such as jax.vmap makes; pass what it wraps"
        )
    parameters = list(inspect.signature(function).parameters.values())
    if str(getattr(inner, "__module__", "")).startswith("haiku.") and any(
        p.name == "rng" for p in parameters
    ):
        raise ExportError(
            "model: expected what hk.transform or hk.transform_with_state returns, got its apply, which "
            "takes a random key; pass that pair of init and apply"
        )
    if len(parameters) < 2 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        names = ", ".join(p.name for p in parameters)
        used = closed_over(function)
        instead = (
            f"; pass {used[0]}, the model of {used[1]} that it uses"
            if used
            else "; pass its params as the first argument, {} where it has none"
        )
        raise ExportError(
            f"model: expected a function apply(params, inputs), got one of ({names}){instead}"
        )
    return calls(function, inputs, call_args)


@dataclasses.dataclass(frozen=True, slots=True)
class _Function:
    """A function of a tree of params, whatever that tree is.

    Attributes:
      function: takes params, then inputs.
      ways: how it can be called, the likeliest first.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
    """

    function: Callable[..., Any]
    ways: Sequence[Call]
    buckets: Sequence[Inputs]

    def of_tree(self, tree: Any) -> "_Named":
        """Return the function of the leaves of a tree by name.

        Raises:
          ParamsError: a leaf is no array, or two have one name.
        """
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        named = [("/".join(words(path)) or "params", leaf) for path, leaf in paths]
        leaves = {name: as_array(leaf, name) for name, leaf in named}
        if len(leaves) != len(paths):
            raise ParamsError("params: expected different names for different params")
        return _Named(
            self, leaves, lambda given: jax.tree.unflatten(treedef, [given[n] for n in leaves])
        )

    def traces(self, tree: Any) -> bool:
        """Whether the function can be traced with a tree, in one of the forms it may be taken in."""
        return any(map(self.traces_as_it_is, (tree, *alternatives(tree))))

    def traces_as_it_is(self, tree: Any) -> bool:
        """Whether the function can be traced with a tree in that very form."""
        try:
            return self.of_tree(tree).traces()
        except ParamsError:
            return False  # it has a leaf that is no array

    def gives_rows(self, tree: Any, inputs: Inputs) -> bool:
        """Whether the function can be traced, and returns a row for each row of its inputs."""
        rows = {spec.shape[0] for spec in inputs.values()}
        named = self.of_tree(tree)
        for _, apply in named.forms():
            found = answers(apply, named.shapes, inputs)
            if found is not None:
                return all({*leaf.shape[:1]} == rows for leaf in found)
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class _Named:
    """A function of params by name.

    Attributes:
      one: the function of a tree of them.
      leaves: the params.
      rebuild: params by name to that tree.
    """

    one: _Function
    leaves: dict[str, Array]
    rebuild: Callable[[Params], Any]

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return what a trace needs to know of the params."""
        return {name: of_shape(array) for name, array in self.leaves.items()}

    def forms(self) -> list[tuple[Call, Apply]]:
        """Return the forms that the function may have, the likeliest first."""
        ways, inputs = self.one.ways, self.one.buckets[0]
        forms = [(call, self._form(call)) for call in ways]
        needed = [p.name for p in ways[0].free(inputs) if required(p)]
        if len(inputs) == len(needed) == 1 and needed[0] not in inputs:
            # Whether it is `apply(params, x)`, or `apply(params, inputs)` with `inputs["x"]`.
            forms.append((ways[0], self._form(ways[0], whole=True)))
        return forms

    def _form(self, call: Call, *, whole: bool = False) -> Apply:
        def apply(named: Params, given: Inputs) -> Any:
            args, kwargs = ((dict(given),), call.switches) if whole else call.bind(given)
            return self.one.function(self.rebuild(named), *args, **kwargs)

        return apply

    def traces(self) -> bool:
        """Whether the function can be traced with these params."""
        inputs, shapes = self.one.buckets[0], self.shapes
        return any(traces(apply, shapes, inputs) for _, apply in self.forms())

    def read(self) -> Adapted:
        """Return the function in the first form that can be traced.

        Raises:
          ExportError: it is still in training mode.
          Exception: none can be traced; what the first one raised.
        """
        inputs, shapes = self.one.buckets[0], self.shapes

        def read(call: Call, apply: Apply) -> set[str]:
            def suspects() -> list[str]:
                return in_call(call, inputs, lambda o: traces(self._form(o), shapes, inputs))

            with explained(getattr(self.one.function, "__name__", "the function"), suspects):
                return read_params(apply, shapes, self.one.buckets)

        _, apply, found = first_read(self.forms(), read)
        castable = frozenset(
            n for n, a in self.leaves.items() if floating(a) and "batch_stats" not in n.split("/")
        )
        # What was passed by hand is kept: a function may be exported with the params of several.
        spare = unread(set(self.leaves) - found, self.leaves)
        return Adapted(apply, self.leaves, castable, spare)
