"""Which framework an object is of, found without importing one.

An object of a framework, or a class of one, has a class of that framework among its ancestors. So
what is not imported yet has no objects, and need not be.
"""

import inspect
from typing import Any

# A framework to the module that its classes are in.
_HOMES = {
    "linen": "flax.linen",
    "nnx": "flax.nnx",
    "keras": "keras",
    "equinox": "equinox",
    "haiku": "haiku",
}


def framework_of(thing: Any) -> str | None:
    """Return the framework of an object or a class: linen, nnx, keras, equinox, haiku; None for another."""
    kind = thing if isinstance(thing, type) else type(thing)
    for ancestor in kind.__mro__:
        for name, home in _HOMES.items():
            if f"{ancestor.__module__}.".startswith(f"{home}."):
                return name
    return None


def closed_over(function: Any) -> tuple[str, str] | None:
    """Return the name and the framework of a model that a function uses without being passed it."""
    if not inspect.isfunction(function):
        return None
    found = inspect.getclosurevars(function)
    for name, value in {**found.globals, **found.nonlocals}.items():
        framework = None if isinstance(value, type) else framework_in(value)
        if framework:
            return name, framework
    return None


def framework_in(tree: Any) -> str | None:
    """Return the framework of an object, or of the first that a tuple, list or mapping has of one."""
    found = framework_of(tree)
    if found or not isinstance(tree, tuple | list | dict):
        return found
    inside = tree.values() if isinstance(tree, dict) else tree
    return next(filter(None, map(framework_in, inside)), None)
