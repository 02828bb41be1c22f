"""Arrays that a model's code closes over, taken out of the programs.

What a closure holds would become constants of each program, stored twice for each bucket. A
position table, a mask or a few literals may; but the weights of a model that a function closes
over may not, and they are often many arrays of which none is large. So it is their sum that
counts: where a program would hold more than 1 MiB of constants, all of them are hoisted into the
params, stored once and named in the report. All, since weights of which some are params and
others are not could never be replaced together.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from export.errors import own_line
from export.jaxprs import CALLS, inner, scan_counts
from export.lowering import Flat
from export.storage import PARAM_DTYPES, restored, stored
from runtime.tensors import Array

# Room for a table of 512 positions by 512 features in float32, or a mask of 1024 by 1024.
HOIST_BYTES = 1 << 20

# What a constant can be taken out of. Loops and branches are made again around a body
# without it, and JAX then makes what the body closes over an argument of the loop.
_OPENED = (*CALLS, "scan", "while", "cond")

Replace = Callable[[Any], Any]


def excess_constants(jaxpr: Any) -> dict[str, Array]:
    """Return the constants that lowering would bake in, if they are over 1 MiB together.

    They are as params are stored, by the digest of that. Scalars are left where they are, and what cannot be taken out counts for the sum alone.
    """
    distinct = {id(constant): constant for constant in _constants(jaxpr, None)}
    if sum(constant.nbytes for constant in distinct.values()) <= HOIST_BYTES:
        return {}
    return movable_constants(jaxpr)


def movable_constants(jaxpr: Any) -> dict[str, Array]:
    """Return the constants that `with_constants` can take out, of any size, as they are stored."""
    return _by_digest(_constants(jaxpr, _OPENED))


def inlined_constants(jaxpr: Any) -> list[Array]:
    """Return the constants that `with_constants` cannot take out, if they are over 1 MiB together."""
    movable = movable_constants(jaxpr)
    arrays = {id(constant): np.asarray(constant) for constant in _constants(jaxpr, None)}
    found = {digest(stored(array)): array for array in arrays.values()}
    inlined = [array for key, array in found.items() if key not in movable]
    return inlined if sum(array.nbytes for array in inlined) > HOIST_BYTES else []


def first_use(jaxpr: Any) -> str | None:
    """Return the line of the user's own code that first uses a constant, such as `net.py, line 3`."""
    constants = set(jaxpr.jaxpr.constvars)
    for equation in jaxpr.jaxpr.eqns:
        line = None
        if any(v in constants for v in equation.invars if not isinstance(v, core.Literal)):
            trace = equation.source_info.traceback
            line = own_line((f.file_name, f.line_num) for f in trace.frames) if trace else None
        line = line or next(filter(None, map(first_use, inner(equation))), None)
        if line:
            return line
    return None


def with_constants(jaxpr: Any, order: Mapping[str, int], count: int) -> Flat:
    """Make a function that takes constants, as they are stored, behind its params.

    Args:
      jaxpr: of a function of `count` params and some inputs.
      order: digest of a constant to its place behind the params; others stay.
      count: number of the function's own params.
    """
    # The constants are kept beside their places, so that no other object gets their identity.
    places: dict[int, tuple[Any, int]] = {}
    for constant in _constants(jaxpr, _OPENED):
        if id(constant) not in places:
            key = digest(stored(np.asarray(constant)))
            if key in order:
                places[id(constant)] = constant, count + order[key]

    def function(params: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
        def replaced(constant: Any) -> Any:
            _, place = places.get(id(constant), (None, None))
            return constant if place is None else restored(params[place], constant.dtype)

        def holds(one: Any) -> bool:
            return any(id(constant) in places for constant in _constants(one, _OPENED))

        return tuple(_Evaluation(replaced, holds).of(jaxpr, [*params[:count], *inputs]))

    return function


def digest(array: Array) -> str:
    """Return what arrays are equal by: dtype, shape and bytes."""
    data = np.asarray(array, order="C").reshape(-1).view(np.uint8)
    head = f"{array.dtype.name}{array.shape}".encode()
    return hashlib.sha256(head + data.data).hexdigest()


def _by_digest(constants: Iterable[Any]) -> dict[str, Array]:
    arrays = {id(constant): stored(np.asarray(constant)) for constant in constants}
    return {digest(array): array for array in arrays.values()}


def all_constants(jaxpr: Any, opened: Collection[str] | None = None) -> Iterator[Any]:
    """Yield the constants of a closed jaxpr, as the model's code holds them.

    Args:
      jaxpr: the closed jaxpr.
      opened: primitives inside of which to look; None for all.
    """
    yield from jaxpr.consts
    for equation in jaxpr.jaxpr.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, core.Literal))
        if opened is None or _can_open(equation, opened):
            for one in inner(equation):
                yield from all_constants(one, opened)


def _constants(jaxpr: Any, opened: Collection[str] | None) -> Iterator[Any]:
    return filter(_is_array, all_constants(jaxpr, opened))


def _is_array(constant: Any) -> bool:
    """Whether this is an array that params can hold: with an axis, and of no random key's dtype."""
    dtype = getattr(constant, "dtype", None)
    return getattr(constant, "ndim", 0) > 0 and getattr(dtype, "name", "") in PARAM_DTYPES


def _can_open(equation: Any, opened: Collection[str]) -> bool:
    # A branch for each platform is chosen while lowering, not by an index.
    return equation.primitive.name in opened and not equation.params.get("branches_platforms")


class _Evaluation:
    """A closed jaxpr evaluated with other constants; what holds none of them stays as it is.

    Args:
      replaced: a constant to what stands for it.
      holds: whether a jaxpr has a constant, at any depth, that is replaced.
    """

    def __init__(self, replaced: Replace, holds: Callable[[Any], bool]) -> None:
        self._replaced = replaced
        self._holds = holds

    def of(self, jaxpr: Any, arguments: Sequence[Any]) -> list[Any]:
        """Return the outputs of a closed jaxpr."""
        values: dict[Any, Any] = {}

        def read(variable: Any) -> Any:
            return (
                self._replaced(variable.val)
                if isinstance(variable, core.Literal)
                else values[variable]
            )

        values.update(zip(jaxpr.jaxpr.constvars, map(self._replaced, jaxpr.consts), strict=True))
        values.update(zip(jaxpr.jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.jaxpr.eqns:
            given = [read(v) for v in equation.invars]
            inside = list(inner(equation)) if _can_open(equation, _OPENED) else []
            if any(map(self._holds, inside)):
                with equation.ctx.manager:
                    results = self._opened(equation, inside, given)
            else:
                bound = equation.primitive.get_bind_params(equation.params)
                # Up to jax 0.11 a pair, from 0.12 on keywords alone.
                functions, keywords = bound if isinstance(bound, tuple) else ((), bound)
                with equation.ctx.manager:
                    result = equation.primitive.bind(*functions, *given, **keywords)
                results = result if equation.primitive.multiple_results else [result]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.jaxpr.outvars]

    def _opened(self, equation: Any, inside: Sequence[Any], given: list[Any]) -> list[Any]:
        """Evaluate a call, a loop or a branch by evaluating what is inside of it."""
        params = equation.params
        match equation.primitive.name:
            case "scan":
                fixed, count = scan_counts(equation)

                def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
                    results = self.of(inside[0], [*given[:fixed], *carry, *x])
                    return results[:count], results[count:]

                carry, ys = jax.lax.scan(
                    step,
                    given[fixed : fixed + count],
                    given[fixed + count :],
                    length=params["length"],
                    reverse=params["reverse"],
                    unroll=params["unroll"],
                )
                return [*carry, *ys]
            case "while":
                tested = params["cond_nconsts"]
                start = tested + params["body_nconsts"]

                def test(carry: Iterable[Any]) -> Any:
                    (found,) = self.of(params["cond_jaxpr"], [*given[:tested], *carry])
                    return found

                def body(carry: Iterable[Any]) -> list[Any]:
                    return self.of(params["body_jaxpr"], [*given[tested:start], *carry])

                return list(jax.lax.while_loop(test, body, given[start:]))
            case "cond":
                branches = [lambda *operands, one=one: self.of(one, operands) for one in inside]
                return list(jax.lax.switch(given[0], branches, *given[1:]))
            case _:
                return self.of(inside[0], given)
