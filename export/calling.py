"""How a model is called: which inputs are which parameters, and what switches training off."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
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
    "train_mode": False,
    "training_mode": False,
    "enable_dropout": False,
    "deterministic": True,
    "use_running_average": True,
    "eval": True,
    "is_eval": True,
    "eval_mode": True,
    "inference": True,
    "is_inference": True,
}

_PLACES = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# Annotations of what is no array.
_PLAIN = (bool, int, str, "bool", "int", "str")

NO_PARAMS = "params: expected the weights of the {}, got none; pass --params"


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


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """How inference calls a model.

    Attributes:
      function: a model's `__call__`, or a function; its first parameter is the model or its params.
      switches: arguments that are no inputs, by name: what switches training off, and what was
        asked for.
      by_place: whether switches and inputs go by place as far as they can, which is how
        `nn.remat(static_argnums=…)` takes them.
      complete: whether what has a default goes by place too, behind them.
    """

    function: Callable[..., Any]
    switches: dict[str, Any]
    by_place: bool = False
    complete: bool = False

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """Return all parameters but the first."""
        return list(inspect.signature(self.function).parameters.values())[1:]

    def bind(self, given: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments of a call.

        Raises:
          ExportError: the inputs are not those of the model.
        """
        args, inputs = self._bind_inputs(given)
        named = {**inputs, **self.switches}
        if not self.by_place:
            return args, named
        placed = [p for p in self.parameters if p.kind in _PLACES]
        of_inputs = [p.name for p in self.free(given) if p.kind in _PLACES]
        values = {**dict(zip(of_inputs, args, strict=False)), **named}
        if not self.complete:
            while placed and placed[-1].name not in values:
                placed.pop()
        unset = [p for p in placed if required(p) and p.name not in values]
        if unset or len(args) > len(of_inputs):
            return args, named
        return tuple(values.pop(p.name, p.default) for p in placed), values

    def free(self, given: Inputs) -> list[inspect.Parameter]:
        """Return the parameters that inputs can be."""
        return [
            p
            for p in self.parameters
            if p.name in given or not (p.name in self.switches or _is_mode(p))
        ]

    def _bind_inputs(self, given: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bind inputs by name where parameters are called so, else by position, else as one dict."""
        free = self.free(given)
        names = [p.name for p in free if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        needed = {p.name for p in free if required(p)}
        any_place = any(p.kind == p.VAR_POSITIONAL for p in free)
        any_name = any(p.kind == p.VAR_KEYWORD for p in free) and not any_place
        if (any_name or set(given) <= set(names)) and needed <= set(given):
            return (), dict(given)
        positional = [p for p in free if p.kind in _PLACES]
        unset = [p for p in positional if p.default is p.empty]
        if len(given) > 1 and len(unset) == 1 and len(positional) < len(given):
            return (dict(given),), {}
        if any_place:
            return tuple(given.values()), {}
        # Some by name and some by position would be a guess, and perhaps a swap.
        strangers = [name for name in given if name not in names]
        if len(strangers) < len(given) or not len(unset) <= len(given) <= len(positional):
            plain = [p.name for p in unset if p.annotation in _PLAIN]
            hint = "; what is no input, pass in a function apply(params, …) that calls the model"
            if strangers:
                hint = nearest(strangers[0], names)
            elif plain:
                hint = f"; say what {plain[0]} is with --call-arg {plain[0]}=VALUE"
            raise ExportError(
                f"inputs: expected {', '.join(names)} as the model has them, got "
                f"{', '.join(given)}{hint}"
            )
        return tuple(given.values()), {}


def calls(
    function: Callable[..., Any], given: Inputs, call_args: Mapping[str, Any], model: Any = None
) -> tuple[Call, ...]:
    """Return the ways in which inference can call a model, the likeliest first.

    Args:
      function: its `__call__`, or a function.
      given: the inputs.
      call_args: arguments that were asked for by name.
      model: a module that may have switches as attributes.

    Raises:
      ExportError: an argument was asked for that the model does not take.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    _refuse_unknown(parameters, given, call_args)
    modes = {
        p.name: MODES[p.name]
        for p in parameters
        if _is_mode(p) and p.name not in given and p.default is not MODES[p.name]
    }
    switches = {**modes, **call_args}
    # A module that has a switch as an attribute may refuse to be passed it as well.
    unset = {p.name for p in parameters if p.default is None and p.name in modes}
    own = {n for n in unset - set(call_args) if isinstance(getattr(model, n, None), bool)}
    untold = {name: value for name, value in switches.items() if name not in own}
    return (
        Call(function, switches),
        Call(function, switches, by_place=True),
        Call(function, switches, by_place=True, complete=True),
        *([Call(function, untold)] if own else []),
    )


def _is_mode(parameter: inspect.Parameter) -> bool:
    """Whether this switches training behaviour: `mode="train"` and the like are no such switches."""
    return parameter.name in MODES and not isinstance(parameter.default, str)


def _refuse_unknown(
    parameters: Sequence[inspect.Parameter], given: Inputs, call_args: Mapping[str, Any]
) -> None:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in kinds and p.name not in given]
    any_name = any(p.kind == p.VAR_KEYWORD for p in parameters)
    for name in call_args:
        if name in given:
            raise ExportError(f"call_args: expected no input, got {name!r}, which is one")
        if name not in names and not any_name:
            raise ExportError(
                f"call_args: expected {' or '.join(names) or 'none'} as the model has them, got "
                f"{name!r}{nearest(name, names)}"
            )


def required(parameter: inspect.Parameter) -> bool:
    """Whether a call has to pass this parameter."""
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic
