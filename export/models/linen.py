"""A flax.linen Module as one pure function."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flax import errors as flax_errors
from flax import linen

from export.calling import NO_PARAMS, Adapted, Call, Inputs, calls
from export.checkpoints import as_tree
from export.errors import ExportError, ParamsError, first_line
from export.forms import unboxed
from export.lowering import describe
from export.matching import Path, aligned, flatten, floating, match
from export.models.linen_variables import (
    NEEDLESS,
    Called,
    Initialized,
    copies_of_params,
    initialized,
    made_in_training,
)
from export.reading import filled, left_out, read_params, refuse_likely
from export.switches import explained, in_attributes, in_call
from runtime.signature import BATCH, notation

# Names that a train state has and a model's variables have not.
_TRAIN_STATE = {"step", "opt_state", "tx", "apply_fn", "rng", "rngs", "key", "epoch"}

# What Flax raises for a variable that is not there, or not as the model has it.
_UNFIT = (
    flax_errors.ScopeCollectionNotFound,
    flax_errors.ScopeParamNotFoundError,
    flax_errors.ScopeParamShapeError,
    flax_errors.ScopeVariableNotFoundError,
)


def adapt_linen(
    model: linen.Module,
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]],
    call_args: Mapping[str, Any],
) -> Adapted:
    """Make a linen Module one pure function.

    Args:
      model: the module.
      params: its variables, its params alone, or a TrainState of either.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
      around: what the params were taken out of, the innermost first; collections that
        they lack are taken from there.
      call_args: arguments that are no inputs, by name.
    """
    if params is None:
        raise ParamsError(NO_PARAMS.format("linen Module"))
    ways = calls(type(model).__call__, buckets[0], call_args, model)
    made = initialized(model, ways, buckets[0])
    called, call, saved, notes = _called(model, made, ways, params, around, buckets[0])
    own = flatten(made.variables or {})
    extra = {path: leaf for path, leaf in saved.items() if path not in own}
    called = called.without_needless(call, {path[0] for path in saved})
    read = _read(called, call, buckets, made.failure)
    needed = {p: own.get(p, saved.get(p)) for p in (*own, *extra) if "/".join(p) in read}
    unread = {path: leaf for path, leaf in extra.items() if path not in needed}
    leaves = match(
        needed,
        {path: leaf for path, leaf in saved.items() if path in needed},
        ", ".join(
            f"{n}: {notation(a.dtype, (BATCH, *a.shape[1:]))}" for n, a in buckets[0].items()
        ),
        beside=unread,
        unread=own,
        saved=around[-1] if around else as_tree(params),
        boxes=made.boxes,
    )
    if made.variables is not None:
        needless = (*NEEDLESS, *copies_of_params(saved))
        unlisted = {p: leaf for p, leaf in unread.items() if p[0] not in needless}
        trained = made_in_training(model, call, buckets[0], unlisted) if unlisted else set()
        refuse_likely({p: a for p, a in unlisted.items() if p not in trained}, list(needed))
    castable = frozenset(n for n, a in leaves.items() if n.startswith("params/") and floating(a))
    left = {"/".join(path) for path in (*own, *extra)} - read
    apply = filled(called.apply(call), called.shapes, read)
    return Adapted(apply, leaves, castable, (*notes, *left_out(left)))


def _called(
    model: linen.Module,
    made: Initialized,
    ways: Sequence[Call],
    params: Any,
    around: Sequence[Mapping[str, Any]],
    inputs: Inputs,
) -> tuple[Called, Call, dict[Path, Any], list[str]]:
    """Return a module with its variables, how to call it, what was saved by its paths, and notes.

    Where init cannot make it, what was saved is taken in the first form in which it can be called:
    as it is, or out of its boxes.
    """

    def of_form(form: Any) -> tuple[Called, dict[Path, Any], list[str]]:
        listed = _as_saved(form) if made.variables is None else made.variables
        tree, notes = _collections(form, listed, around)
        own = flatten(made.variables or {})
        saved = aligned(own, flatten(tree), made.boxes)
        extra = {path: leaf for path, leaf in saved.items() if path not in own}
        return Called.of(model, made.variables or {}, extra, inputs), saved, notes

    called, saved, notes = of_form(params)
    if made.variables is not None:
        return called, made.call, saved, notes
    for form in (params, unboxed(as_tree(params))):
        one, of_one, said = of_form(form)
        call = next(filter(one.traces, ways), None)
        if call is not None:
            return one, call, of_one, said
    return called, made.call, saved, notes


def _read(
    called: Called, call: Call, buckets: Sequence[Inputs], failure: Exception | None
) -> set[str]:
    """Return the names of the variables that an answer depends on.

    Args:
      called: the module with its variables.
      call: how it is called.
      buckets: shapes and dtypes of the inputs, of each bucket.
      failure: what init raised, if it did.

    Raises:
      ExportError: the module asks for a key, or would change its variables.
    """
    model = called.model

    def suspects() -> list[str]:
        fields = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
        attributes = {name: getattr(model, name, None) for name in fields}

        def quiet(changes: dict[str, Any]) -> bool:
            return dataclasses.replace(called, model=model.clone(**changes)).traces(call)

        return in_call(call, buckets[0], called.traces) or in_attributes(
            attributes, type(model).__name__, quiet
        )

    try:
        with explained(type(model).__name__, suspects):
            return read_params(called.apply(call), called.shapes, buckets)
    except ExportError:
        raise
    except Exception as error:
        if failure is None:
            raise
        if isinstance(error, _UNFIT):
            raise ExportError(
                f"the model cannot be traced: {describe(failure)}; nor do the params fit it as they "
                f"are: {first_line(error)}"
            ) from error
        raise failure from None


def _as_saved(params: Any) -> Mapping[str, Any]:
    """Return the variables of a model that cannot be made, as far as its checkpoint shows them."""
    tree = as_tree(params)
    if not isinstance(tree, Mapping) or "params" not in tree:
        return {"params": tree}
    return {n: v for n, v in tree.items() if isinstance(v, Mapping) and n not in _TRAIN_STATE}


def _collections(
    params: Any, wanted: Mapping[str, Any], around: Sequence[Mapping[str, Any]]
) -> tuple[Any, list[str]]:
    """Return the variable collections in what was restored: {'params': …, 'batch_stats': …}."""
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
