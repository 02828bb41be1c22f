"""Whether a traced model can mix its rows at all, shown by its structure.

The batch is followed from the inputs through every equation to the outputs, as `jax.vmap` would
put it there: each value is the same for all rows, or has one row of the batch at each place of one
axis, a function of that row of the inputs alone and the same function for every row. Where all
outputs are of the second kind, no arithmetic of the model lets a row see another, or its own place.
What a compiler's rounding makes of them is not said here: programs are run for that.

Whatever is not known for certain is not proven, which says nothing against a model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from export.errors import own_line
from export.jaxprs import CALLS, equations, inner, scan_counts
from export.row_layouts import (
    ROW,
    UNIFORM,
    VARYING,
    Layout,
    Unproven,
    by_axis,
    has_row,
    joined,
    normal,
    of_array,
    varying,
)
from export.row_rules import follow


class Mixed(NamedTuple):
    """A value whose rows may depend on each other.

    Attributes:
      reason: the operation that did it first, and how.
    """

    reason: str


Found = Layout | Mixed


def why_not_independent(jaxpr: Any, skip: int) -> str | None:
    """Return what keeps rows from being shown to be independent, or None where they are shown to be.

    Args:
      jaxpr: closed, of a function of arrays; the inputs' first axis is the batch, and the outputs'
        is to be.
      skip: its arguments that come before the inputs.
    """
    inner_jaxpr = jaxpr.jaxpr
    for equation in equations(inner_jaxpr):
        if equation.effects:  # through references, values go ways that no equation's results show
            return _named(equation, "it has effects")
    given: list[Found] = [varying(v.aval.shape) for v in inner_jaxpr.invars[:skip]]
    for variable in inner_jaxpr.invars[skip:]:
        batch, *rest = variable.aval.shape
        given.append(normal([(batch, ROW), *varying(rest)]))
    for variable, found in zip(inner_jaxpr.outvars, _results(jaxpr, given), strict=True):
        if isinstance(found, Mixed):
            return found.reason
        shape = variable.aval.shape
        if not shape:
            return "an output: it has no batch"
        try:
            first, *others = by_axis(found, shape)
        except Unproven as error:
            return f"an output: {error}"
        if first not in ((), ((shape[0], ROW),), ((shape[0], UNIFORM),)) or any(
            map(has_row, others)
        ):
            return "an output: the batch is not its first axis, or it differs from place to place"
    return None


def _results(jaxpr: Any, given: Sequence[Found]) -> list[Found]:
    """Return the layouts of a closed jaxpr's outputs."""
    known: dict[Any, Found] = dict(zip(jaxpr.jaxpr.invars, given, strict=True))
    known |= {
        v: _of_constant(v, c) for v, c in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
    }

    def read(variable: Any) -> Found:
        if isinstance(variable, core.Literal):
            return _of_constant(variable, variable.val)
        return known[variable]

    for equation in jaxpr.jaxpr.eqns:
        results = _of_equation(equation, [read(v) for v in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.jaxpr.outvars]


def _of_constant(variable: Any, value: Any) -> Layout:
    shape = variable.aval.shape
    try:
        array = np.asarray(value)
    except TypeError:  # random keys
        return varying(shape)
    return of_array(array) if array.shape == shape else varying(shape)


def _of_equation(equation: Any, given: list[Found]) -> list[Found]:
    inside = list(inner(equation))
    try:
        match equation.primitive.name:
            case "scan":
                return _of_scan(equation, inside[0], given)
            case "while":
                return _of_while(equation, given)
            case "cond":
                branches = [_results(branch, given[1:]) for branch in inside]
                _expect_known(given[:1])
                return [_either(each) for each in zip(*branches, strict=True)]
            case name if name in CALLS and inside and len(inside[0].jaxpr.invars) == len(given):
                return _results(inside[0], given)
        return list(follow(equation, _expect_known(given)))
    except Unproven as error:
        reason = _named(equation, str(error))
    except _Spreads as error:
        reason = error.reason
    return [Mixed(reason) for _ in equation.outvars]


class _Spreads(Exception):
    """All results are mixed since an operand is."""

    def __init__(self, mixed: Mixed) -> None:
        super().__init__(mixed.reason)
        self.reason = mixed.reason


def _expect_known(given: Sequence[Found]) -> list[Layout]:
    """Return layouts as they are.

    Raises:
      _Spreads: one of them is mixed.
    """
    for found in given:
        if isinstance(found, Mixed):
            raise _Spreads(found)
    return [found for found in given if not isinstance(found, Mixed)]


def _either(given: Sequence[Found]) -> Found:
    """Return the layout of a value that is one of several; of which, no row decides."""
    for found in given:
        if isinstance(found, Mixed):
            return found
    try:
        return joined([found for found in given if not isinstance(found, Mixed)])
    except Unproven as error:
        return Mixed(f"a branch or a loop: {error}")


def _of_while(equation: Any, given: list[Found]) -> list[Found]:
    tested, looped = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    tests, fixed, start = given[:tested], given[tested : tested + looped], given[tested + looped :]
    carry, _ = _settled(equation.params["body_jaxpr"], fixed, start, [])
    # How often the body runs shows in all that it makes.
    _expect_known(_results(equation.params["cond_jaxpr"], [*tests, *carry]))
    return carry


def _of_scan(equation: Any, body: Any, given: list[Found]) -> list[Found]:
    constants, carried = scan_counts(equation)
    begin = constants + carried
    fixed, start, scanned = given[:constants], given[constants:begin], given[begin:]
    axes = [
        by_axis(found, v.aval.shape)
        for found, v in zip(_expect_known(scanned), equation.invars[begin:], strict=True)
    ]
    length = equation.params["length"]
    if any(has_row(first) for first, *_ in axes):
        return _of_map(equation, fixed, start, axes)
    slices: list[Found] = [normal(d for axis in rest for d in axis) for _, *rest in axes]
    carry, results = _settled(body, fixed, start, slices)
    stacked: list[Found] = [
        y if isinstance(y, Mixed) else normal([(length, VARYING), *y]) for y in results
    ]
    return [*carry, *stacked]


def _of_map(
    equation: Any, fixed: list[Found], start: list[Found], axes: list[list[Layout]]
) -> list[Found]:
    """Follow a loop over the rows: each step has a row, and nothing of those before it."""
    length = equation.params["length"]
    if start:
        raise Unproven("it carries something from row to row")
    if any(has_row(layout) for layout in _expect_known(fixed)) or any(
        first not in (((length, ROW),), ((length, UNIFORM),)) for first, *_ in axes
    ):
        raise Unproven("it reads more of the batch than a row at each step")
    return [normal([(length, ROW), *varying(v.aval.shape[1:])]) for v in equation.outvars]


def _settled(
    body: Any, fixed: list[Found], start: list[Found], slices: list[Found]
) -> tuple[list[Found], list[Found]]:
    """Return the carry of a loop, whatever the number of its steps, and what else a step returns."""
    carry = start
    while True:
        results = _results(body, [*fixed, *carry, *slices])
        after = [_either(both) for both in zip(carry, results, strict=False)]
        if [type(one) for one in after] == [type(one) for one in carry] and all(
            isinstance(a, Mixed) or a == b for a, b in zip(after, carry, strict=True)
        ):
            return carry, results[len(carry) :]
        carry = after


def _named(equation: Any, reason: str) -> str:
    """Name an operation, and the line of the user's own code that it is from."""
    trace = equation.source_info.traceback
    line = own_line((f.file_name, f.line_num) for f in trace.frames) if trace else None
    return f"{equation.primitive.name}{f' ({line})' if line else ''}: {reason}"
