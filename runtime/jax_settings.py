"""JAX's settings in force around a call, kept away from what the runtime itself does.

A setting comes from the environment, from `jax.config.update`, or from a context that is open in
the calling thread. Those that only check, trace or guard what the caller's code does are
switched to what JAX has by default, in this thread and for as long as a block lasts: they can
make no answer right, and would make ours fail. What changes numbers is not touched here: of a
program it was decided at export. docs/jax-settings.md has the whole table.
"""

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import jax

# Attributes of `jax`, each a context manager for the setting `jax_NAME`, and what it is set to.
_DURING_CALLS: dict[str, Any] = {
    "disable_jit": False,
    "transfer_guard_host_to_device": "allow",
    "transfer_guard_device_to_device": "allow",
    "transfer_guard_device_to_host": "allow",
    "array_garbage_collection_guard": "allow",
    "debug_nans": False,
    "debug_infs": False,
    "no_execution": False,
}
# Those that only tracing, lowering and compiling look at.
_DURING_TRACES: dict[str, Any] = {
    "check_tracer_leaks": False,
    "enable_checks": False,
    "debug_key_reuse": False,
    "legacy_prng_key": "allow",
    "no_tracing": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
}
LIFTED = {**_DURING_CALLS, **_DURING_TRACES}

# What a call reads of JAX's configuration, and the default of each.
_read = operator.attrgetter("jax_enable_x64", *(f"jax_{name}" for name in _DURING_CALLS))
_UNSET = tuple(None if value == "allow" else value for value in _DURING_CALLS.values())


def lifted_for_call(*, x64: bool) -> contextlib.AbstractContextManager[None]:
    """Keep settings away from running a compiled program, and from moving arrays, in this thread.

    Args:
      x64: whether 64-bit types are on meanwhile.
    """
    if _read(jax.config) == (x64, *_UNSET):  # as is the rule: 2 µs, and not 15
        return contextlib.nullcontext()
    return _entered({**_differing(_DURING_CALLS), "enable_x64": x64})


@contextlib.contextmanager
def lifted(*, x64: bool | None = None) -> Iterator[None]:
    """Keep settings, and a mesh in force, away from tracing, lowering and compiling, in this thread.

    Args:
      x64: whether 64-bit types are on meanwhile; None leaves them as they are.
    """
    wide = {} if x64 is None else {"enable_x64": x64}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_entered({**_differing(LIFTED), **wide}))
        if not jax.sharding.get_abstract_mesh().empty:
            stack.enter_context(jax.set_mesh(None))
        yield


def _differing(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return those settings that are neither unset nor as wanted."""
    config = jax.config
    return {
        name: value
        for name, value in wanted.items()
        if getattr(config, f"jax_{name}") not in (None, value)
    }


@contextlib.contextmanager
def _entered(settings: dict[str, Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(getattr(jax, name)(value))
        yield
