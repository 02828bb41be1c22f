"""A flax.linen Module as one pure function."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import errors as flax_errors
from flax import linen

from export.calling import NO_PARAMS, PIN_A_KEY, Adapted, Inputs, Params, bind, modes
from export.checkpoints import as_tree
from export.errors import ExportError, ParamsError, first_line
from export.matching import flatten, floating, match
from runtime.signature import BATCH, notation

# What tells a train state from a model's variables.
_TRAIN_STATE = {"step", "opt_state", "tx", "apply_fn", "rng", "rngs", "key", "epoch"}

_PIN = PIN_A_KEY.format(
    "def apply(params, x): return model.apply(params, x, rngs={{'{}': jax.random.key(0)}})"
)


def adapt_linen(
    model: linen.Module, params: Any, inputs: Inputs, around: Sequence[Mapping[str, Any]]
) -> Adapted:
    """Make a linen Module one pure function.

    Args:
      model: the module.
      params: its variables, its params alone, or a TrainState of either.
      inputs: shapes and dtypes by name.
      around: what the params were taken out of, the innermost first; collections that
        they lack come from there.
    """
    switches = modes(type(model).__call__)
    if params is None:
        raise ParamsError(NO_PARAMS.format("linen Module"))

    def call(variables: Any, given: Inputs) -> Any:
        args, kwargs = bind(type(model).__call__, given)
        try:
            return model.apply(variables, *args, **kwargs, **switches)
        except flax_errors.InvalidRngError as error:
            stream = re.search(r'PRNG for "(\w+)"', str(error))
            pin = _PIN.format(stream[1] if stream else "params")
            raise ExportError(f"{type(model).__name__}: {pin}") from error
        except flax_errors.ModifyScopeVariableError as error:
            what = first_line(error)
            hint = (
                "is it still in training mode?"
                if "batch_stats" in what
                else "a program keeps nothing between calls: take it as an input, and return it"
            )
            raise ExportError(
                f"{type(model).__name__}: expected inference to leave its variables alone, got "
                f"{what}; {hint}"
            ) from error

    def init(given: Inputs) -> Any:
        args, kwargs = bind(type(model).__call__, given)
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        made = model.init(keys, *args, **kwargs, **switches)
        return linen.meta.unbox(made), made

    # As a list: JAX sorts the keys of a dict, and inputs by place would be swapped.
    expected, boxed = jax.eval_shape(
        lambda values: init(dict(zip(inputs, values, strict=True))), list(inputs.values())
    )
    wanted = {name: tree for name, tree in expected.items() if name != "intermediates"}
    tree, notes = _collections(params, wanted, around)
    shaped_by = ", ".join(
        f"{n}: {notation(a.dtype, (BATCH, *a.shape[1:]))}" for n, a in inputs.items()
    )
    leaves = match(
        flatten(wanted),
        flatten(tree),
        shaped_by,
        saved=around[-1] if around else as_tree(params),
        boxes=dict(zip(flatten(boxed), flatten(expected), strict=True)),
    )
    treedef = jax.tree.structure(wanted)
    castable = frozenset(n for n, a in leaves.items() if n.startswith("params/") and floating(a))

    def apply(named: Params, given: Inputs) -> Any:
        return call(jax.tree.unflatten(treedef, [named[n] for n in leaves]), given)

    return Adapted(apply, leaves, castable, tuple(notes))


def _collections(
    params: Any, wanted: Mapping[str, Any], around: Sequence[Mapping[str, Any]]
) -> tuple[Any, list[str]]:
    """Give the variable collections in what was restored: {'params': …, 'batch_stats': …}."""
    params = as_tree(params)
    if not isinstance(params, Mapping):
        raise ParamsError(f"params: expected a dict of params, got {type(params).__name__}")
    tree = linen.meta.unbox(dict(params))
    if "params" not in wanted:
        return tree, []
    if "params" not in tree:
        # The params alone, by what is asked for or by how they look.
        alone = around or set(wanted) == {"params"} or set(tree) & set(wanted["params"])
        return _with_those_around({"params": tree}, wanted, around) if alone else (tree, [])
    dropped = sorted(set(tree) - set(wanted)) if set(tree) & _TRAIN_STATE else []
    kept = {
        name: value for name, value in tree.items() if name not in dropped and value is not None
    }
    inner = kept["params"]
    if isinstance(inner, Mapping) and "params" in inner and "params" not in wanted["params"]:
        # A TrainState made from all variables: params={'params': …, 'batch_stats': …}.
        kept = dict(inner)
    kept, notes = _with_those_around(kept, wanted, around)
    if dropped:
        notes.append(
            f"left out of the checkpoint: {', '.join(dropped)}, not variables of the model"
        )
    return kept, notes


def _with_those_around(
    tree: dict[str, Any], wanted: Mapping[str, Any], around: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Add the collections that a subtree such as `ema_params` lacks from beside it."""
    # A TrainState made from all variables has the others inside its params.
    inside = [place["params"] for place in around if isinstance(place.get("params"), Mapping)]
    found = {
        name: place[name]
        for name in wanted
        if name not in tree
        for place in reversed((*around, *inside))
        if place.get(name) is not None
    }
    if not found:
        return tree, []
    note = f"{', '.join(found)} of the checkpoint come from beside the subtree of --params-path"
    return {**tree, **linen.meta.unbox(found)}, [note]
