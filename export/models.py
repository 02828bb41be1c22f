"""Any model made one pure function: `apply(params, inputs) -> outputs`.

A linen Module, an nnx Module and a plain function end up alike: named params as NumPy
arrays, named inputs, no state, no randomness, dropout off. That function is both what
is lowered and, run op by op, the reference that goldens come from.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from export.calling import NO_PARAMS, Adapted, Inputs, required
from export.errors import ExportError, ParamsError
from export.functions import adapt_function
from export.linen_models import adapt_linen
from export.lowering import describe
from export.nnx_models import adapt_nnx, plain_arrays
from runtime.signature import TensorSpec
from runtime.tensors import numpy_dtype


def adapt(
    model: Any,
    params: Any,
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    around: Sequence[Mapping[str, Any]] = (),
) -> Adapted:
    """Make a model one pure function.

    Args:
      model: a linen Module; an nnx Module, or a class or function that makes one
        when called with `rngs=`; or `apply(params, inputs)`, which gets the only input
        as an array or all of them as a dict, or each by its name where its
        parameters are called so.
      params: a tree of arrays; None for an nnx Module that has its own.
      inputs: what it will be called with.
      sizes: a size that the model takes for each bucketed axis.
      around: what the params were taken out of, the innermost first; a linen Module finds
        its other collections there.

    Raises:
      ParamsError: params are missing, extra or have other shapes.
      ExportError: the model cannot be called so.
    """
    try:
        return _adapt(model, params, abstract(inputs, 2, sizes), around)
    except ExportError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's model raises
        raise ExportError(f"the model cannot be traced: {describe(error)}") from error


def _adapt(model: Any, params: Any, inputs: Inputs, around: Sequence[Mapping[str, Any]]) -> Adapted:
    if is_factory(model) and takes_rngs(model):
        if params is None:
            raise ParamsError(NO_PARAMS.format("nnx.Module"))
        return _adapt_nnx_factory(model, params, inputs, around)
    if is_factory(model):
        model = make(model, {})[0]
    if isinstance(model, linen.Module):
        return adapt_linen(model, params, inputs, around)
    if isinstance(model, nnx.Module):
        return adapt_nnx(nnx.clone(model), params, inputs, around)
    if callable(model):
        return adapt_function(model, params, inputs, around)
    raise ExportError(
        "model: expected an ExportSpec, a flax Module or factory, or apply(params, inputs), "
        f"got {type(model).__name__}"
    )


def _adapt_nnx_factory(
    factory: Any, params: Any, inputs: Inputs, around: Sequence[Mapping[str, Any]]
) -> Adapted:
    """Make a module without its weights, which would be random ones, if it can be told so."""

    def without_plain_arrays() -> Any:
        made, _ = make(factory, {})
        return None if plain_arrays(made) else made

    abstract_module = nnx.eval_shape(without_plain_arrays)
    if abstract_module is not None:
        return adapt_nnx(abstract_module, params, inputs, around)
    # Arrays that are no Variables have no shapes alone; and those that are alike whatever the
    # random key is can stand for themselves.
    made, twin = (make(factory, {"rngs": nnx.Rngs(seed)})[0] for seed in (0, 1))
    others = plain_arrays(twin)
    fixed = {p for p, array in plain_arrays(made).items() if np.array_equal(array, others[p])}
    return adapt_nnx(made, params, inputs, around, fixed)


def is_factory(model: Any) -> bool:
    """Say whether this makes a model when called with no argument but `rngs`."""
    if isinstance(model, type) and issubclass(model, linen.Module | nnx.Module):
        return True
    if not callable(model) or isinstance(model, linen.Module | nnx.Module):
        return False
    return not any(required(p) for n, p in _parameters(model).items() if n != "rngs")


def takes_rngs(factory: Any) -> bool:
    """Say whether this makes an nnx.Module with random weights."""
    return "rngs" in _parameters(factory)


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """Give what is still to be passed; a signature of an nnx class itself says nothing."""
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
    """Tell configuration keys that a class or function takes from those it does not.

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
    # There is no mesh here that annotations of its params could name the axes of.
    with nnx.use_eager_sharding(False):
        return factory(**known), ignored


def abstract(
    inputs: Sequence[TensorSpec], batch: int, sizes: Mapping[str, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Give shapes and dtypes of inputs at one bucket, by name."""
    return {
        s.name: jax.ShapeDtypeStruct(s.concrete(batch, sizes), numpy_dtype(s.dtype)) for s in inputs
    }
