"""Any model made one pure function: `apply(params, inputs) -> outputs`.

Models of all frameworks, and plain functions, end up alike: named params as NumPy arrays, named
inputs, no state, no randomness, dropout off. That function is both what is lowered and, run op by
op, the reference that goldens come from.

What an object is decides which module here makes it that function; that module, and with it the
framework, is imported then.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax

from export.calling import Adapted, Inputs
from export.checkpoints import SavedBy
from export.errors import ExportError, ParamsError, Untraceable
from export.lowering import describe
from export.models.factories import (
    expect_model,
    is_factory,
    make,
    no_model,
    takes_key,
    takes_rngs,
)
from export.models.frameworks import framework_in, framework_of
from export.spec import ExportSpec
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
        when called with `rngs=`; a Keras Layer or Model; an Equinox Module, or a tuple of one and
        its State, or what makes these when called with `key=`; what `hk.transform` returned;
        or `apply(params, inputs)`, which gets the only input
        as an array or all of them as a dict, or each by its name where its
        parameters are called so.
      params: a tree of arrays; None for a model that has its own.
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
    if framework_of(model) == "equinox":
        from export.models.equinox_modules import unjitted

        model = unjitted(model)
    if is_factory(model) and not takes_rngs(model) and not takes_key(model):
        made = make(model, {})[0]
        expect_model(made, model)
        model = made
    framework = _framework(model, params)
    if isinstance(params, SavedBy) and params.framework != framework:
        raise ParamsError(
            f"params {params.name}: expected a model of {params.framework}, which saved them, got "
            f"{framework or 'a function'}"
        )
    match framework:
        case "linen":
            from export.models.linen import adapt_linen

            return adapt_linen(model, params, buckets, around, call_args)
        case "nnx":
            from export.models.nnx import adapt_nnx

            return adapt_nnx(model, params, buckets, around, call_args)
        case "keras":
            from export.models.keras import adapt_keras

            return adapt_keras(model, params, buckets, around, call_args)
        case "equinox":
            from export.models.equinox import adapt_equinox

            return adapt_equinox(model, params, buckets, around, call_args)
        case "haiku":
            from export.models.haiku import adapt_haiku

            return adapt_haiku(model, params, buckets, around, call_args)
    if callable(model):
        from export.models.functions import adapt_function

        return adapt_function(model, params, buckets, around, call_args)
    raise no_model(model)


def _framework(model: Any, params: Any) -> str | None:
    """Return which framework makes a function of a model; None for one that is a function already."""
    if is_factory(model):  # of random weights
        return "nnx" if takes_rngs(model) else "equinox"
    if framework := framework_in(model):
        return framework
    # A function of a whole Equinox module, which is a tree with more in it than arrays.
    return "equinox" if framework_in(params) == "equinox" else None


def with_own_inputs(spec: ExportSpec) -> ExportSpec:
    """Return a spec with the inputs that its model declares, where it names none.

    Raises:
      ExportError: the model declares inputs that cannot be taken as they are.
    """
    if spec.inputs or isinstance(spec.model, type) or framework_of(spec.model) != "keras":
        return spec
    from export.models.keras_models import declared_inputs

    return dataclasses.replace(spec, inputs=declared_inputs(spec.model))


def weights(model: Any, params: Any) -> Any:
    """Return the weights that a model is exported with: those given, or its own by name."""
    if params is not None or is_factory(model):
        return params
    match framework_of(model):
        case "nnx":
            from export.models.nnx import own_weights
        case "keras":
            from export.models.keras import own_weights
        case _:
            return None
    return own_weights(model)


def abstract(
    inputs: Sequence[TensorSpec], batch: int, sizes: Mapping[str, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes and dtypes of inputs at one bucket, by name."""
    return {
        s.name: jax.ShapeDtypeStruct(s.concrete(batch, sizes), numpy_dtype(s.dtype)) for s in inputs
    }
