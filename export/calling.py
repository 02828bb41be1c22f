"""How a model is called: which inputs are which parameters, and what switches training off."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from export.errors import ExportError
from runtime.errors import nearest
from runtime.tensors import Array

Params = Mapping[str, Any]
Inputs = Mapping[str, Any]

# Arguments that switch training behaviour, and what inference wants of them.
MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "is_train": False,
    "deterministic": True,
    "use_running_average": True,
    "eval": True,
}

NO_PARAMS = "params: expected the weights of the {}, got none; pass --params"
PIN_A_KEY = (
    "inference needs a random key, and a program has none; pin one by exporting a function: {}"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Adapted:
    """A model as one pure function.

    Attributes:
      apply: (params by name, inputs by name) to any tree of arrays.
      params: the weights by name, in a fixed order.
      castable: names of the params that `dtype` may cast: floating, no statistics.
      notes: what was decided on the user's behalf, a sentence each.
    """

    apply: Callable[[Params, Inputs], Any]
    params: dict[str, Array]
    castable: frozenset[str]
    notes: tuple[str, ...] = ()


def modes(call: Callable[..., Any]) -> dict[str, bool]:
    """Give those arguments of a model that switch its training off."""
    known = inspect.signature(call).parameters
    return {name: value for name, value in MODES.items() if name in known}


def required(parameter: inspect.Parameter) -> bool:
    """Say whether a call has to pass this parameter."""
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def bind(call: Callable[..., Any], given: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give inputs by name where parameters are called so, else by position, else as one dict.

    Args:
      call: a model's `__call__`, or a function; its first parameter is the model or params.
      given: the inputs.
    """
    parameters = list(inspect.signature(call).parameters.values())[1:]
    free = [p for p in parameters if p.name not in MODES]
    names = [p.name for p in free if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in free if required(p)}
    any_place = any(p.kind == p.VAR_POSITIONAL for p in free)
    any_name = any(p.kind == p.VAR_KEYWORD for p in free) and not any_place
    if (any_name or set(given) <= set(names)) and needed <= set(given):
        return (), dict(given)
    positional = [p for p in free if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    unset = [p for p in positional if p.default is p.empty]
    if len(given) > 1 and len(unset) == 1 and len(positional) < len(given):
        return (dict(given),), {}
    if any_place:
        return tuple(given.values()), {}
    # Some by name and some by position would be a guess, and perhaps a swap.
    strangers = [name for name in given if name not in names]
    if len(strangers) < len(given) or not len(unset) <= len(given) <= len(positional):
        hint = (
            nearest(strangers[0], names)
            if strangers
            else "; what is no input, pass in a function apply(params, …) that calls the model"
        )
        raise ExportError(
            f"inputs: expected {', '.join(names)} as the model has them, got "
            f"{', '.join(given)}{hint}"
        )
    return tuple(given.values()), {}
