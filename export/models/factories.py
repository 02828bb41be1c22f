"""Classes and functions that make a model: what they take, and how they are called."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from export.calling import required
from export.errors import ExportError
from export.models.frameworks import framework_in, framework_of

# What makes weights at random takes one of these: nnx's random states, or a key.
RNGS, KEY = "rngs", "key"
_FLAX = ("linen", "nnx")


def is_factory(model: Any) -> bool:
    """Return whether this makes a model when called with no argument but `rngs` or `key`."""
    framework = framework_of(model)
    if isinstance(model, type) and framework in _FLAX:
        return True
    if not callable(model) or (framework is not None and not isinstance(model, type)):
        return False
    needed = [name for name, p in parameters_of(model).items() if required(p)]
    return not set(needed) - {RNGS, KEY}


def expect_model(made: Any, factory: Any) -> None:
    """Raise ExportError where what a factory made is no model.

    Args:
      made: by calling it.
      factory: a class or function.
    """
    if not callable(made) and framework_in(made) is None:
        raise no_model(made, f" from calling {named(factory)}()")


def no_model(value: Any, origin: str = "") -> ExportError:
    """Return the error of a value that is no model.

    Args:
      value: in place of a model.
      origin: where it is from, behind a space; nothing for what was passed.
    """
    return ExportError(
        "model: expected an ExportSpec, a model of Flax, Keras, Equinox or Haiku or its factory, or "
        f"apply(params, inputs), got {type(value).__name__}{origin}"
    )


def named(factory: Any) -> str:
    """Return what a factory is called in the user's code, with a configuration or without."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return getattr(factory, "__name__", type(factory).__name__)


def takes_rngs(factory: Any) -> bool:
    """Return whether this makes an nnx.Module with random weights."""
    return RNGS in parameters_of(factory)


def takes_key(factory: Any) -> bool:
    """Return whether this makes a model with weights that a random key decides."""
    key = parameters_of(factory).get(KEY)
    return key is not None and required(key)


def parameters_of(factory: Any) -> dict[str, inspect.Parameter]:
    """Return what is still to be passed; a signature of an nnx class itself says nothing."""
    if isinstance(factory, functools.partial):
        rest = list(parameters_of(factory.func).items())[len(factory.args) :]
        return {name: p for name, p in rest if name not in factory.keywords}
    if not isinstance(factory, type):
        return dict(inspect.signature(factory).parameters)
    initialize = factory.__init__  # type: ignore[misc]
    parameters = dict(list(inspect.signature(initialize).parameters.items())[1:])
    if framework_of(factory) == "linen":
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
    parameters = parameters_of(factory)
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    known = {key: value for key, value in config.items() if takes_all or key in parameters}
    missing = [n for n, p in parameters.items() if required(p) and n not in {*known, RNGS, KEY}]
    if missing:
        raise ExportError(
            f"{named(factory)}: expected values for {', '.join(missing)}, got none; pass --config FILE.json"
        )
    return known, tuple(sorted(set(config) - set(known)))


def make(factory: Any, config: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Call a class or function with the configuration keys that it knows.

    Returns:
      What it made, and the keys that were ignored, sorted.
    """
    from flax import nnx

    known, ignored = known_arguments(factory, config)
    if takes_rngs(factory):
        known.setdefault(RNGS, nnx.Rngs(0))
    # Weights with a sharding are laid over a mesh where they are made; here they are not kept.
    with nnx.use_eager_sharding(False):
        return factory(**known), ignored
