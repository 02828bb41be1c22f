"""A Keras 3 Layer or Model as one pure function."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from export.calling import NO_PARAMS, Adapted, Call, Inputs, Params, calls
from export.checkpoints import SavedBy, as_tree
from export.errors import ExportError, ParamsError, Untraceable, first_line
from export.errors import place as place_of
from export.matching import Path as Place
from export.matching import aligned, flatten, floating, match
from export.models.keras_models import (
    expect_layer,
    import_keras,
    input_structure,
    named_inputs,
    named_outputs,
    refuse_stateful,
    refuse_tensorflow,
    sentence,
)
from export.reading import changed, filled, left_out, of_shape, read_params, refuse_likely
from export.switches import key_asked_for, state_changed
from runtime.scratch import temporary_directory

# Inputs by name to the arguments of a call.
Bind = Callable[[Inputs], tuple[tuple[Any, ...], dict[str, Any]]]

_PIN = (
    "trainable, rest = ([v.value for v in vs] for vs in (model.trainable_variables, "
    "model.non_trainable_variables)); def apply(params, x): return "
    "model.stateless_call(params, rest, x)[0]"
)
# Variables that training does not move: they keep their dtype.
_STATISTICS = ("moving_mean", "moving_variance", "mean", "variance", "count")
_SEED = "seed_generator_state"
# How Keras adds to an error in which layer it was: its name, and in bold what was raised.
_WRAPPED = re.compile(
    r"Exception encountered when calling (.+?)\.\n\n\x1b\[1m(.*?)\x1b\[0m", re.DOTALL
)


def own_weights(model: Any) -> dict[str, Any]:
    """Return the variables of a model by name."""
    return {"/".join(place): v.value for place, v in _variables(model).items()}


def _variables(model: Any) -> dict[Place, Any]:
    """Return the variables of a model by their paths; those of one path are numbered."""
    found: dict[Place, Any] = {}
    for variable in model.variables:
        place = tuple(variable.path.split("/"))
        count = sum(
            1
            for p in found
            if p == place or (p[:-1] == place[:-1] and p[-1].startswith(f"{place[-1]}#"))
        )
        found[(*place[:-1], f"{place[-1]}#{count}") if count else place] = variable
    return found


def adapt_keras(
    model: Any,
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]],
    call_args: Mapping[str, Any],
) -> Adapted:
    """Make a Keras Layer or Model one pure function.

    Args:
      model: the layer or model; one that was never called is built.
      params: its variables by their paths, a `.weights.h5` file, or None for what it has.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
      around: what the params were taken out of, the innermost first.
      call_args: arguments that are no inputs, by name.

    Raises:
      ExportError: it draws random numbers or changes its variables when it answers, or it cannot
        be called so.
      ParamsError: the params are missing, or another model's.
    """
    keras = import_keras()
    expect_layer(model)
    refuse_tensorflow(model)
    refuse_stateful(model)
    bind = _binding(model, buckets[0], call_args)
    if not model.built:
        args, kwargs = bind(
            {n: np.zeros((1, *a.shape[1:]), a.dtype) for n, a in buckets[0].items()}
        )
        model(*args, **kwargs)
        if params is None and any(_SEED not in variable.path for variable in model.variables):
            name = type(model).__name__
            raise ParamsError(
                NO_PARAMS.format(f"keras {name}, which was never called and has none")
            )
    one = _Called(model, _variables(model), bind, keras.StatelessScope)
    own = {place: v.value for place, v in one.variables.items()}
    if isinstance(params, SavedBy):
        own, params = _loaded(model, params), None
    shapes = {"/".join(place): of_shape(value) for place, value in own.items()}
    read = _read(one, shapes, buckets)
    needed = {place: value for place, value in own.items() if "/".join(place) in read}
    saved = own if params is None else aligned(own, flatten(as_tree(params)))
    extra = {place: leaf for place, leaf in saved.items() if place not in own}
    given = {place: leaf for place, leaf in saved.items() if place in needed}
    whole = around[-1] if around else as_tree(params)
    leaves = match(needed, given, beside=extra, unread=own, saved=whole)
    refuse_likely(extra, list(needed))
    left = {"/".join(place) for place in (*own, *extra)} - read
    castable = frozenset(
        n for n, a in leaves.items() if floating(a) and n.rpartition("/")[2] not in _STATISTICS
    )
    notes = left_out({n for n in left if not n.endswith(_SEED)})
    return Adapted(filled(one.apply, shapes, read), leaves, castable, notes)


@dataclasses.dataclass(frozen=True, slots=True)
class _Called:
    """A model with its variables in the hands of its caller.

    Attributes:
      model: the layer or model.
      variables: its variables by path.
      bind: inputs by name to the arguments of a call.
      scope: Keras's StatelessScope, in which variables have other values.
    """

    model: Any
    variables: dict[Place, Any]
    bind: Bind
    scope: Any

    def apply(self, named: Params, given: Inputs) -> Any:
        """Answer a batch."""
        return self._both(named, given)[0]

    def after(self, named: Params, given: Inputs) -> dict[str, Any]:
        """Return the variables by name, as they are after a call; without those of random seeds."""
        after = self._both(named, given)[1]
        return {name: value for name, value in after.items() if not name.endswith(_SEED)}

    def _both(self, named: Params, given: Inputs) -> tuple[Any, dict[str, Any]]:
        names = {"/".join(place): v for place, v in self.variables.items()}
        args, kwargs = self.bind(given)
        with self.scope(state_mapping=[(v, named[name]) for name, v in names.items()]) as scope:
            answer = self.model(*args, **{"training": False, **kwargs})
            after = {name: scope.get_current_value(v) for name, v in names.items()}
        return named_outputs(self.model, answer), after


def _read(one: _Called, shapes: Mapping[str, Any], buckets: Sequence[Inputs]) -> set[str]:
    """Return the names of the variables that an answer depends on.

    Raises:
      ExportError: a random seed is among them, or a call changes its variables.
      Untraceable: the model fails; names its layer.
    """
    name = type(one.model).__name__
    try:
        found = read_params(one.apply, shapes, buckets)
    except ExportError:
        raise
    except Exception as error:
        wrapped = _WRAPPED.search(str(error))
        if wrapped is None:
            raise
        said = f"{wrapped[1]}: {type(error).__name__}: {first_line(ValueError(wrapped[2]))}"
        raise Untraceable(f"the model cannot be traced: {said}{place_of(error)}") from error
    if seeds := [n for n in found if n.endswith(_SEED)]:
        raise ExportError(f"{name}: {key_asked_for(seeds[0], (), _PIN)}")
    if moved := changed(one.after, shapes, buckets[0]):
        raise ExportError(state_changed(name, moved, ()))
    return found


def _binding(model: Any, inputs: Inputs, call_args: Mapping[str, Any]) -> Bind:
    """Return how inputs by name become the arguments of a call."""
    own = named_inputs(model)
    if own and not call_args:
        single = len(own) == len(inputs) == 1  # whatever it is called
        if set(own) != set(inputs) and not single:
            raise ExportError(
                f"inputs: expected {', '.join(own)} as the model has them, got {', '.join(inputs)}"
            )
        struct, pack = input_structure(model), import_keras().tree.pack_sequence_as
        names = list(inputs) if single else list(own)
        return lambda given: ((pack(struct, [given[name] for name in names]),), {})
    call: Call = calls(type(model).call, inputs, call_args, model)[0]
    return call.bind


def _loaded(model: Any, saved: SavedBy) -> dict[Place, Any]:
    """Return the variables of a model as a `.weights.h5` file has them; the model is left as it is.

    Raises:
      ParamsError: it is another model's, or no such file; in Keras's own words.
    """
    variables = _variables(model)
    own = [v.value for v in variables.values()]
    with temporary_directory("hloserve-keras-") as folder:
        path = folder / "params.weights.h5"
        path.write_bytes(saved.data)
        try:
            model.load_weights(path)
            return {place: v.value for place, v in variables.items()}
        except Exception as error:
            said = sentence(error).replace(str(path), saved.name)
            raise ParamsError(f"params {saved.name}: Keras cannot load them: {said}") from error
        finally:
            for variable, value in zip(variables.values(), own, strict=True):
                variable.assign(value)
