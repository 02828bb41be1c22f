"""Any model made one pure function: `apply(params, inputs) -> outputs`.

A linen Module, an nnx Module and a plain function end up alike: named params as NumPy
arrays, named inputs, no state, no randomness, dropout off. That function is both what
is lowered and, run op by op, the reference that goldens come from.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from export.calling import NO_PARAMS, Adapted, Inputs, required
from export.errors import ExportError, ParamsError, Untraceable
from export.lowering import describe
from export.matching import Path
from export.models.functions import adapt_function
from export.models.linen import adapt_linen
from export.models.nnx import adapt_nnx, plain_arrays
from runtime.signature import TensorSpec
from runtime.tensors import numpy_dtype


def adapt(
    model: Any,
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]] = (),
    call_args: Mapping[str, Any] = MappingProxyType({}),
) -> Adapted:
    """Make a model one pure function.

    Args:
      model: a linen Module; an nnx Module, or a class or function that makes one
        when called with `rngs=`; or `apply(params, inputs)`, which gets the only input
        as an array or all of them as a dict, or each by its name where its
        parameters are called so.
      params: a tree of arrays; None for an nnx Module that has its own.
      buckets: shapes and dtypes of the inputs by name, of each bucket; what is found out by
        tracing one of them is found with the first.
      around: what the params were taken out of, the innermost first; a linen Module finds
        its other collections there, and an error where the right ones are.
      call_args: arguments of the model that are no inputs, by name.

    Raises:
      ParamsError: params are missing, extra or have other shapes.
      ExportError: the model cannot be called so.
    """
    try:
        return _adapt(model, params, buckets, around, call_args)
    except ExportError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's model raises
        raise Untraceable(f"the model cannot be traced: {describe(error)}") from error


def _adapt(
    model: Any,
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]],
    call_args: Mapping[str, Any],
) -> Adapted:
    if is_factory(model) and takes_rngs(model):
        if params is None:
            raise ParamsError(NO_PARAMS.format("nnx.Module"))
        made, fixed = _without_weights(model)
        return adapt_nnx(made, params, buckets, around, call_args, fixed)
    if is_factory(model):
        model = make(model, {})[0]
    if isinstance(model, linen.Module):
        return adapt_linen(model, params, buckets, around, call_args)
    if isinstance(model, nnx.Module):
        return adapt_nnx(nnx.clone(model), params, buckets, around, call_args)
    if callable(model):
        return adapt_function(model, params, buckets, around, call_args)
    raise ExportError(
        "model: expected an ExportSpec, a flax Module or factory, or apply(params, inputs), "
        f"got {type(model).__name__}"
    )


def _without_weights(factory: Any) -> tuple[nnx.Module, set[Path] | None]:
    """Make a module without its weights, which would be random ones, if it takes an argument for that.

    Returns:
      The module, and the paths of its plain arrays that are no weights; None where it has none.
    """

    def without_plain_arrays() -> Any:
        made, _ = make(factory, {})
        return None if plain_arrays(made) else made

    abstract_module = nnx.eval_shape(without_plain_arrays)
    if abstract_module is not None:
        return abstract_module, None
    # Arrays that are no Variables have no shapes alone; and those that are alike whatever the
    # random key is can stand for themselves.
    made, twin = (make(factory, {"rngs": nnx.Rngs(seed)})[0] for seed in (0, 1))
    others = plain_arrays(twin)
    return made, {p for p, array in plain_arrays(made).items() if np.array_equal(array, others[p])}


def weights(model: Any, params: Any) -> Any:
    """Return the weights that a model is exported with: those given, or an nnx Module's own."""
    of_its_own = params is None and isinstance(model, nnx.Module)
    return nnx.to_pure_dict(nnx.state(model)) if of_its_own else params


def is_factory(model: Any) -> bool:
    """Return whether this makes a model when called with no argument but `rngs`."""
    if isinstance(model, type) and issubclass(model, linen.Module | nnx.Module):
        return True
    if not callable(model) or isinstance(model, linen.Module | nnx.Module):
        return False
    return not any(required(p) for n, p in _parameters(model).items() if n != "rngs")


def takes_rngs(factory: Any) -> bool:
    """Return whether this makes an nnx.Module with random weights."""
    return "rngs" in _parameters(factory)


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """Return what is still to be passed; a signature of an nnx class itself says nothing."""
    if isinstance(factory, functools.partial):
        rest = list(_parameters(factory.func).items())[len(factory.args) :]
        return {name: p for name, p in rest if name not in factory.keywords}
    if not isinstance(factory, type):
        return dict(inspect.signature(factory).parameters)
    initialize = factory.__init__  # type: ignore[misc]
    parameters = dict(list(inspect.signature(initialize).parameters.items())[1:])
    if issubclass(factory, linen.Module):
        return {n: p for n, p in parameters.items() if n not in ("parent", "name")}
    return parameters


def known_arguments(
    factory: Any, config: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Separate configuration keys that a class or function takes from those it does not.

    Returns:
      What it takes, and the keys that are ignored, sorted.

    Raises:
      ExportError: it needs a value that the configuration does not have.
    """
    parameters = _parameters(factory)
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    known = {key: value for key, value in config.items() if takes_all or key in parameters}
    missing = [n for n, p in parameters.items() if required(p) and n not in {*known, "rngs"}]
    if missing:
        name = getattr(factory, "__name__", type(factory).__name__)
        raise ExportError(
            f"{name}: expected values for {', '.join(missing)}, got none; pass --config FILE.json"
        )
    return known, tuple(sorted(set(config) - set(known)))


def make(factory: Any, config: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Call a class or function with the configuration keys that it knows.

    Returns:
      What it made, and the keys that were ignored, sorted.
    """
    known, ignored = known_arguments(factory, config)
    if takes_rngs(factory):
        known.setdefault("rngs", nnx.Rngs(0))
    # Weights with a sharding are laid over a mesh where they are made; here they are not kept.
    with nnx.use_eager_sharding(False):
        return factory(**known), ignored


def abstract(
    inputs: Sequence[TensorSpec], batch: int, sizes: Mapping[str, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes and dtypes of inputs at one bucket, by name."""
    return {
        s.name: jax.ShapeDtypeStruct(s.concrete(batch, sizes), numpy_dtype(s.dtype)) for s in inputs
    }
