"""Large arrays that a model's code closes over, taken out of the programs.

What a closure holds would become constants of each program. Those over 1 MiB are hoisted
into the params: stored once, and named in the report.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from export.jaxprs import CALLS, inner, scan_counts
from export.lowering import Flat
from export.storage import restored, stored, stores
from runtime.tensors import Array

HOIST_BYTES = 1 << 20

# What a constant can be taken out of. Loops and branches are made again around a body
# without it, and JAX then makes what the body closes over an argument of the loop.
_OPENED = (*CALLS, "scan", "while", "cond")

Replace = Callable[[Any], Any]


def large_constants(jaxpr: Any) -> dict[str, Array]:
    """Find the constants over 1 MiB that lowering would bake in, by digest, as they are stored."""
    return _large(_constants(jaxpr, _OPENED))


def stuck_constants(jaxpr: Any) -> dict[str, Array]:
    """Find the constants over 1 MiB that `with_constants` cannot take out, by digest."""
    movable = large_constants(jaxpr)
    found = _large(_constants(jaxpr, None))
    return {key: array for key, array in found.items() if key not in movable}


def with_constants(jaxpr: Any, order: Mapping[str, int], count: int) -> Flat:
    """Make a function that takes large constants behind its params.

    Args:
      jaxpr: of a function of `count` params and some inputs.
      order: digest of a constant to its place behind the params.
      count: number of the function's own params.
    """

    def function(params: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
        def replaced(constant: Any) -> Any:
            if not _is_large(constant):
                return constant
            param = params[count + order[digest(stored(np.asarray(constant)))]]
            return restored(param, constant.dtype) if stores(constant.dtype) else param

        return tuple(_evaluate(jaxpr, [*params[:count], *inputs], replaced))

    return function


def digest(array: Array) -> str:
    """Tell arrays apart by dtype, shape and bytes."""
    data = np.asarray(array, order="C").reshape(-1).view(np.uint8)
    head = f"{array.dtype.name}{array.shape}".encode()
    return hashlib.sha256(head + data.data).hexdigest()


def _is_large(constant: Any) -> bool:
    return getattr(constant, "nbytes", 0) > HOIST_BYTES


def _large(constants: Iterable[Any]) -> dict[str, Array]:
    arrays = (stored(np.asarray(constant)) for constant in constants if _is_large(constant))
    return {digest(array): array for array in arrays}


def _constants(jaxpr: Any, opened: Collection[str] | None) -> Iterator[Any]:
    """Yield the constants at the top and inside the primitives `opened`; None is all."""
    yield from jaxpr.consts
    for equation in jaxpr.jaxpr.eqns:
        yield from (v.val for v in equation.invars if isinstance(v, core.Literal))
        if opened is None or _can_open(equation, opened):
            for one in inner(equation):
                yield from _constants(one, opened)


def _can_open(equation: Any, opened: Collection[str]) -> bool:
    # A branch for each platform is chosen while lowering, not by an index.
    return equation.primitive.name in opened and not equation.params.get("branches_platforms")


def _evaluate(jaxpr: Any, arguments: Sequence[Any], replaced: Replace) -> list[Any]:
    """Evaluate a closed jaxpr with other constants; what holds none of them stays as it is."""
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return replaced(variable.val) if isinstance(variable, core.Literal) else values[variable]

    values.update(zip(jaxpr.jaxpr.constvars, map(replaced, jaxpr.consts), strict=True))
    values.update(zip(jaxpr.jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.jaxpr.eqns:
        given = [read(v) for v in equation.invars]
        inside = list(inner(equation)) if _can_open(equation, _OPENED) else []
        if any(_is_large(c) for one in inside for c in _constants(one, _OPENED)):
            with equation.ctx.manager:
                results = _opened(equation, inside, given, replaced)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            # Up to jax 0.11 a pair, from 0.12 on keywords alone.
            functions, keywords = bound if isinstance(bound, tuple) else ((), bound)
            with equation.ctx.manager:
                result = equation.primitive.bind(*functions, *given, **keywords)
            results = result if equation.primitive.multiple_results else [result]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.jaxpr.outvars]


def _opened(equation: Any, inside: Sequence[Any], given: list[Any], replaced: Replace) -> list[Any]:
    """Evaluate a call, a loop or a branch by evaluating what is inside of it."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            fixed, count = scan_counts(equation)

            def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
                results = _evaluate(inside[0], [*given[:fixed], *carry, *x], replaced)
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
                (found,) = _evaluate(params["cond_jaxpr"], [*given[:tested], *carry], replaced)
                return found

            def body(carry: Iterable[Any]) -> list[Any]:
                return _evaluate(params["body_jaxpr"], [*given[tested:start], *carry], replaced)

            return list(jax.lax.while_loop(test, body, given[start:]))
        case "cond":
            branches = [
                lambda *operands, one=one: _evaluate(one, operands, replaced) for one in inside
            ]
            return list(jax.lax.switch(given[0], branches, *given[1:]))
        case _:
            return _evaluate(inside[0], given, replaced)
