"""Reading jaxprs: what is inside of an equation, and what an output depends on."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

# The names of what draws random bits without a key's dtype: each platform has its own.
_RANDOM = ("rng_bit_generator", "rng_uniform")

# Primitives that call a function and do no more, once nothing is differentiated.
CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
)

Names = frozenset[str]
_NONE: Names = frozenset()


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, those inside of others too."""
    for equation in jaxpr.eqns:
        yield equation
        for one in inner(equation):
            yield from equations(one.jaxpr)


def inner(equation: Any) -> Iterator[Any]:
    """Yield the closed jaxprs inside an equation: jit, scan, while, cond, custom derivatives."""
    for value in equation.params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item if hasattr(item, "consts") else core.ClosedJaxpr(item, ())  # type: ignore[attr-defined]


def scan_counts(equation: Any) -> tuple[int, int]:
    """Return how many operands of a scan are constants, and how many it carries."""
    params = equation.params
    if "ft_in" in params:  # from jax 0.12 on
        constants, carried, _ = map(len, params["ft_in"].unpack())
        return constants, carried
    return params["num_consts"], params["num_carry"]


def floating_dtypes(jaxpr: Any) -> list[Names]:
    """Return, for each output, the floating dtypes that its computation passes through.

    What an output does not depend on does not count for it: a model may have one output in
    bfloat16 and another in float32.
    """
    return _followed(jaxpr)


def random_sources(jaxpr: Any) -> set[str]:
    """Return what draws the random bits that an output depends on, such as `key<fry>`.

    A key that is drawn from and then not used counts for nothing.
    """
    names = _NONE.union(*_followed(jaxpr))
    return {name for name in names if name.startswith("key<") or name in _RANDOM}


def _followed(jaxpr: Any) -> list[Names]:
    """Return the names that reach each output: of dtypes and of random sources."""
    outputs = _outputs(jaxpr, [_NONE for _ in jaxpr.jaxpr.invars])
    if any(equation.effects for equation in equations(jaxpr.jaxpr)):
        # Through references, values go ways that no equation's outputs show.
        inputs = map(_own, jaxpr.jaxpr.invars)
        inside = (_own(v) for e in equations(jaxpr.jaxpr) for v in e.outvars)
        drawn = (_drawn(e) for e in equations(jaxpr.jaxpr))
        every = _NONE.union(*inputs, *inside, *drawn)
        return [every for _ in outputs]
    return outputs


def read_inputs(jaxpr: Any) -> list[bool]:
    """Return for each input whether an output depends on its values.

    Its shape alone does not count, nor what no output needs. Where values are passed on in
    place, through references, every input counts.
    """
    if any(equation.effects for equation in equations(jaxpr.jaxpr)):
        return [True for _ in jaxpr.jaxpr.invars]
    return _needed(jaxpr, [True for _ in jaxpr.jaxpr.outvars])


def passed_on(jaxpr: Any) -> list[int | None]:
    """Return for each output which input it is, as it came in; None for what was computed."""
    origins = {v: place for place, v in enumerate(jaxpr.jaxpr.invars)}
    for equation in jaxpr.jaxpr.eqns:
        name, inside = equation.primitive.name, list(inner(equation))
        sources: list[int | None] = [None for _ in equation.outvars]
        if name in CALLS and inside and len(inside[0].jaxpr.invars) == len(equation.invars):
            sources = passed_on(inside[0])
        elif name in ("broadcast_in_dim", "copy"):
            sources = [0]
        for variable, source in zip(equation.outvars, sources, strict=True):
            origin = None if source is None else equation.invars[source]
            if not isinstance(origin, core.Literal | None) and origin in origins:
                origins[variable] = origins[origin]
    return [None if isinstance(v, core.Literal) else origins.get(v) for v in jaxpr.jaxpr.outvars]


def _needed(jaxpr: Any, outputs: Sequence[bool]) -> list[bool]:
    """Return which inputs those outputs depend on that are wanted."""
    wanted = {
        v
        for v, used in zip(jaxpr.jaxpr.outvars, outputs, strict=True)
        if used and not isinstance(v, core.Literal)
    }
    for equation in reversed(jaxpr.jaxpr.eqns):
        used = [v in wanted for v in equation.outvars]
        if any(used):
            needs = zip(equation.invars, _needed_by(equation, used), strict=True)
            wanted |= {v for v, need in needs if need and not isinstance(v, core.Literal)}
    return [v in wanted for v in jaxpr.jaxpr.invars]


def _needed_by(equation: Any, used: list[bool]) -> list[bool]:
    """Return which operands those results depend on that are used."""
    name, params, inside = equation.primitive.name, equation.params, list(inner(equation))
    if name == "scan":
        fixed, carried = scan_counts(equation)
        return _needed_by_loop(inside[0], used, fixed, carried)
    if name == "while":
        tested, looped = params["cond_nconsts"], params["body_nconsts"]
        # How often the body runs shows in all that it makes.
        test = _needed(params["cond_jaxpr"], [True])
        used = [a or b for a, b in zip(used, test[tested:], strict=True)]
        return test[:tested] + _needed_by_loop(params["body_jaxpr"], used, looped, len(used))
    if name == "cond":
        branches = [_needed(branch, used) for branch in inside]
        return [True, *(any(of_one) for of_one in zip(*branches, strict=True))]
    if name in CALLS and inside and len(inside[0].jaxpr.invars) == len(equation.invars):
        return _needed(inside[0], used)
    return [True for _ in equation.invars]


def _needed_by_loop(body: Any, used: list[bool], fixed: int, carried: int) -> list[bool]:
    """Return what a body of constants, a carry and slices needs, of all of its steps."""
    while True:
        needs = _needed(body, used)
        carry = [a or b for a, b in zip(used[:carried], needs[fixed:], strict=False)]
        if carry == used[:carried]:
            return [*needs[:fixed], *carry, *needs[fixed + carried :]]
        used = [*carry, *used[carried:]]


def _own(variable: Any) -> Names:
    dtype = getattr(variable.aval, "dtype", None)
    if dtype is None:
        return _NONE
    if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key):
        return frozenset({str(dtype)})
    if not jax.numpy.issubdtype(dtype, jax.numpy.inexact):
        return _NONE
    return frozenset({jax.numpy.finfo(dtype).dtype.name})  # of a complex one, its parts'


def _drawn(equation: Any) -> Names:
    name = equation.primitive.name
    return frozenset({name}) if name in _RANDOM else _NONE


def _outputs(jaxpr: Any, inputs: Sequence[Names]) -> list[Names]:
    """Follow dtypes from a jaxpr's inputs to its outputs."""
    known = {v: _own(v) for v in jaxpr.jaxpr.constvars}
    known |= {v: _own(v) | names for v, names in zip(jaxpr.jaxpr.invars, inputs, strict=True)}

    def read(variable: Any) -> Names:
        return _own(variable) if isinstance(variable, core.Literal) else known[variable]

    for equation in jaxpr.jaxpr.eqns:
        results = _of_equation(equation, [read(v) for v in equation.invars])
        for variable, names in zip(equation.outvars, results, strict=True):
            known[variable] = names | _own(variable)
    return [read(v) for v in jaxpr.jaxpr.outvars]


def _of_equation(equation: Any, given: list[Names]) -> list[Names]:
    name, params, inside = equation.primitive.name, equation.params, list(inner(equation))
    if name == "scan":
        fixed, carried = scan_counts(equation)
        return _of_loop(inside[0], given, fixed, fixed + carried)
    if name == "while":
        tested, looped = params["cond_nconsts"], params["body_nconsts"]
        carry = _of_loop(params["body_jaxpr"], given[tested:], looped, len(given) - tested)
        (test,) = _outputs(params["cond_jaxpr"], [*given[:tested], *carry])
        # How often the body ran shows in all that it made.
        return [names | test for names in carry]
    if name == "cond":
        branches = zip(*(_outputs(branch, given[1:]) for branch in inside), strict=True)
        return [given[0].union(*names) for names in branches]
    if name in CALLS and inside and len(inside[0].jaxpr.invars) == len(given):
        return _outputs(inside[0], given)
    # An ordinary operation; or one whose inside is a kernel's, and then all of it counts.
    every = _drawn(equation).union(
        *given, *(_own(v) for one in inside for e in equations(one.jaxpr) for v in e.outvars)
    )
    return [every for _ in equation.outvars]


def _of_loop(body: Any, given: list[Names], begin: int, end: int) -> list[Names]:
    """Follow a body whose inputs from `begin` to `end` are its own first outputs, until it settles."""
    while True:
        results = _outputs(body, given)
        carry = [a | b for a, b in zip(given[begin:end], results, strict=False)]
        if carry == given[begin:end]:
            return [*carry, *results[len(carry) :]]
        given = [*given[:begin], *carry, *given[end:]]
