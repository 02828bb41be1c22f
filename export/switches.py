"""What leaves a model in training mode: the arguments and attributes that an error names.

A model that asks for a random key, or that would change its statistics, is most often one that is
still training. What is on is found by trying: an argument or an attribute is the one if the model
asks no more once it has its other value. Nothing is switched by itself.
"""

import contextlib
import dataclasses
import enum
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flax import errors as flax_errors
from flax import linen

from export.calling import MODES, Call, Inputs
from export.errors import ExportError, few_names, first_line

PIN_A_KEY = (
    "inference needs a random key, and a program has none; pin one by exporting a function: {}"
)
_ONLY_ON_PURPOSE = "only if it samples on purpose: pin one by exporting a function: {}"
_PIN = "def apply(params, x): return model.apply(params, x, rngs={{'{}': jax.random.key(0)}})"

# What is on in training, and what is on in inference, as far as names say so.
_TRAINING = re.compile(r"train|drop|stoch|noise|augment", re.IGNORECASE)
_INFERENCE = re.compile(r"determin|infer|eval|test|predict|serv", re.IGNORECASE)
# A `mode="train"`, and what it may be for inference.
_TRAIN_MODE = re.compile(r"train(ing)?", re.IGNORECASE)
_MODES_BY_NAME = ("eval", "test", "inference", "predict", "serve")
# How many suspects an error names.
_SHOWN = 3


@contextlib.contextmanager
def explained(name: str, suspects: Callable[[], list[str]]) -> Iterator[None]:
    """Raise ExportError in place of what Flax raises for a model that is still training.

    Args:
      name: of the model.
      suspects: returns what may be on, a text each; it is called where something is.
    """
    try:
        yield
    except flax_errors.InvalidRngError as error:
        found = re.search(r'PRNG for "(\w+)"', str(error))
        stream = found[1] if found else "params"
        on = suspects() or _in_frames(error)
        raise ExportError(f"{name}: {key_asked_for(stream, on, _PIN.format(stream))}") from error
    except flax_errors.ModifyScopeVariableError as error:
        what, on = first_line(error), suspects() or _in_frames(error)
        hint = "a program keeps nothing between calls: take it as an input, and return it"
        if on or "batch_stats" in what:
            hint = f"is it still in training mode?{' ' * bool(on)}{_listed(on)}"
        raise ExportError(
            f"{name}: expected inference to leave its variables alone, got {what}; {hint}"
        ) from error


def state_changed(name: str, changed: Sequence[str], suspects: Sequence[str]) -> str:
    """Return what there is to say of a model that changes its state when it answers.

    Args:
      name: of the model.
      changed: names of what changes.
      suspects: what may be on.
    """
    return (
        f"{name}: expected inference to leave its state alone, got {few_names(changed)} changed; is "
        f"it still in training mode?{' ' * bool(suspects)}{_listed(suspects)} A program keeps nothing "
        "between calls: what has to be kept, take as an input and return"
    )


def key_asked_for(stream: str, suspects: Sequence[str], pin: str) -> str:
    """Return what to do about a model that asks for a random key.

    Args:
      stream: the name of the key.
      suspects: what may be on.
      pin: how a key is pinned, which is the last thing to do.
    """
    dropping = "drop" in stream.lower()
    if not suspects and not dropping:
        return PIN_A_KEY.format(pin)
    on = "Dropout is still on" if dropping else "is it still in training mode?"
    through = " through " if dropping else " "
    advice = (
        f"{on}{through}{_listed(suspects)}"
        if suspects
        else f"{on}; call it with deterministic=True (or train=False)"
    )
    return f"the model asks for a `{stream}` key: {advice}; {_ONLY_ON_PURPOSE.format(pin)}"


def in_call(call: Call, given: Inputs, quiet: Callable[[Call], bool]) -> list[str]:
    """Return the arguments of a call that leave a model in training mode.

    Args:
      call: the call.
      given: its inputs.
      quiet: whether the model asks for nothing when it is called so.
    """
    suspects = []
    for p in call.parameters:
        value = call.switches.get(p.name, p.default)
        others = [] if p.name in given else _others(p.name, value, p.annotation)
        for other in others:
            changed = dataclasses.replace(call, switches={**call.switches, p.name: other})
            if quiet(changed):
                return [_argument(p.name, value, other)]
        if others and value is not None:
            suspects.append((p.name, value, others[0]))
    return [_argument(*one) for one in _likeliest(suspects)]


def in_attributes(
    attributes: Mapping[str, Any], owner: str, quiet: Callable[[dict[str, Any]], bool]
) -> list[str]:
    """Return the attributes of a module that leave it in training mode, if one alone does.

    Args:
      attributes: its attributes by name.
      owner: what they are attributes of.
      quiet: whether the model asks for nothing with other values of some.
    """
    for name, value in attributes.items():
        for place, old, other, changed in _changes(name, value):
            if quiet({name: changed}):
                return [f"{place}={_shown(old)} of {owner}: make it with {place}={_shown(other)}"]
    return []


def _changes(name: str, value: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield where an attribute or what it has inside is a switch, both its values, and the attribute changed."""
    for other in _others(name, value):
        yield name, value, other, other
    inside: dict[str, Any] = {}
    if name.startswith("_"):  # a library's own, such as what nnx keeps of each attribute
        return
    if isinstance(value, Mapping):
        inside = {key: item for key, item in value.items() if isinstance(key, str)}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type | linen.Module):
        inside = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value) if f.init}
    for key, item in inside.items():
        for other in _others(key, item):
            changed = (
                {**value, key: other}
                if isinstance(value, Mapping)
                else dataclasses.replace(value, **{key: other})
            )
            yield f"{name}.{key}", item, other, changed


def _argument(name: str, value: Any, other: Any) -> str:
    if isinstance(other, enum.Enum):
        return (
            f"{name}={_shown(value)}: try call_args={{{name!r}: {_shown(other)}}} of an ExportSpec"
        )
    return f"{name}={value!r}: try --call-arg {name}={other!r}"


def _shown(value: Any) -> str:
    return f"{type(value).__name__}.{value.name}" if isinstance(value, enum.Enum) else repr(value)


def _others(name: str, value: Any, annotation: Any = None) -> list[Any]:
    """Return what a switch may be instead of this; nothing for what is no switch."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, enum.Enum):
        return [other for other in type(value) if other is not value]
    if isinstance(value, float):
        return [0.0] if value > 0 and _TRAINING.search(name) else []
    if isinstance(value, str) and _TRAIN_MODE.fullmatch(value):
        return list(_MODES_BY_NAME)
    unset = value is None or value is inspect.Parameter.empty
    if unset and re.search(r"\bbool\b", _written(annotation)):
        return [False, True]
    return []


def _written(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _likeliest(suspects: Sequence[tuple[str, Any, Any]]) -> list[tuple[str, Any, Any]]:
    """Return those suspects that are called like switches and are on, or else all of them."""
    on = [one for one in suspects if _trains(one[0], one[1])]
    return (on or list(suspects))[:_SHOWN]


def _trains(name: str, value: Any) -> bool:
    """Whether a switch of this name has the value that training wants."""
    if name in MODES:
        return isinstance(value, bool) and value is not MODES[name]
    if isinstance(value, str):
        return bool(_TRAIN_MODE.fullmatch(value))
    pattern = _TRAINING if value is True else _INFERENCE
    return isinstance(value, bool) and bool(pattern.search(name))


def still_training(module: Any) -> list[str]:
    """Return what is on in a module that is a dataclass, by the names of its fields."""
    return [
        f"{name}={value!r} of {type(module).__name__}: make it {_instead(name, value)}"
        for name, value in (
            (f.name, getattr(module, f.name, None)) for f in dataclasses.fields(module)
        )
        if _trains(name, value)
    ][:_SHOWN]


def _in_frames(error: BaseException) -> list[str]:
    """Return what is on in the modules that an error went through, the innermost first."""
    found: dict[str, None] = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if not isinstance(module, linen.Module) or type(module).__module__.startswith("flax."):
            continue
        who = type(module).__name__
        who += f" ({'/'.join(module.path)})" if module.scope and module.path else ""
        fields = {f.name: getattr(module, f.name, None) for f in dataclasses.fields(module)}
        for name, value in fields.items():
            if _trains(name, value):
                found[f"{name}={value!r} of {who}: make it {_instead(name, value)}"] = None
        code = frame.f_code
        for name in code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]:
            value = frame.f_locals.get(name)
            if _trains(name, value):
                found[f"{name}={value!r} in a call of {who}: call it {_instead(name, value)}"] = (
                    None
                )
    return list(found)[::-1][:_SHOWN]


def _instead(name: str, value: Any) -> str:
    return f"with {name}={not value}" if isinstance(value, bool) else f"with another {name}"


def _listed(suspects: Sequence[str]) -> str:
    return ", or ".join(suspects)
