"""Which axes of an array are the batch, and along which parts of its index the array is constant.

An index in row-major order is written as a number of several digits, one for each axis or a part
of one: `float32[8, 5]` has a digit of size 8 and one of size 5. A reshape changes no digit, so
that the batch can be followed through `[8, 5, 3]` to `[40, 3]` and back. A layout says of each
digit what the array's values are along it:

* `ROW`: the batch; the values of row i are one function, the same for every i, of row i of the
  inputs and of what is no input
* `UNIFORM`: the same everywhere
* `VARYING`: nothing is known
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from runtime.tensors import Array

Kind = Literal["row", "uniform", "varying"]
ROW: Kind = "row"
UNIFORM: Kind = "uniform"
VARYING: Kind = "varying"

# Sizes and kinds; no size is 1, and no two neighbours could be one.
Layout = tuple[tuple[int, Kind], ...]


class Unproven(Exception):
    """Rows are not shown to be independent; the message says by what."""


def normal(digits: Iterable[tuple[int, Kind]]) -> Layout:
    """Return digits as a layout: without those of size 1, neighbours of a kind as one."""
    found: list[tuple[int, Kind]] = []
    for size, kind in digits:
        if size == 1:
            continue
        if found and kind != ROW and found[-1][1] == kind:
            found[-1] = (found[-1][0] * size, kind)
        else:
            found.append((size, kind))
    if sum(kind == ROW for _, kind in found) > 1:
        raise Unproven("rows meet other rows")
    return tuple(found)


def varying(shape: Sequence[int]) -> Layout:
    """Return the layout of an array of which nothing is known but that no row is in it."""
    return normal([(math.prod(shape), VARYING)])


def of_array(array: Array) -> Layout:
    """Return the layout of a known array, constant along the axes where all its bits are."""
    if array.size == 0:
        return varying(array.shape)
    data = np.ascontiguousarray(array).reshape(array.shape)
    bits = data.reshape(-1).view(np.uint8).reshape(*data.shape, data.itemsize)
    return normal(
        (size, UNIFORM if (bits == bits.take([0], axis)).all() else VARYING)
        for axis, size in enumerate(data.shape)
    )


def has_row(layout: Layout) -> bool:
    """Whether values depend on a row of the inputs."""
    return any(kind == ROW for _, kind in layout)


def by_axis(layout: Layout, shape: Sequence[int]) -> list[Layout]:
    """Return the digits of each axis.

    Raises:
      Unproven: the batch is spread over several axes, or there are no values.
    """
    if 0 in shape:
        raise Unproven("an array is empty")
    for digits in (layout, _coarse(layout)):
        found = _distributed(list(digits), shape)
        if found is not None:
            return found
    raise Unproven("the batch is spread over several axes")


def joined(layouts: Sequence[Layout]) -> Layout:
    """Return the layout of what is computed element by element from arrays of one size.

    Raises:
      Unproven: rows meet other rows, or values that depend on their place.
    """
    first, *others = layouts
    if all(other == first for other in others):
        return first
    for each in (layouts, [_coarse(layout) for layout in layouts]):
        found = _aligned([list(layout) for layout in each])
        if found is not None:
            return normal(found)
    raise Unproven("rows meet other rows")


def _coarse(layout: Layout) -> Layout:
    """Return a layout with one digit, if any, on each side of the batch."""
    found: list[tuple[int, Kind]] = []
    for is_row, run in itertools.groupby(layout, lambda digit: digit[1] == ROW):
        digits = list(run)
        if is_row:
            found += digits
        else:
            kinds = {kind for _, kind in digits}
            kind = UNIFORM if kinds == {UNIFORM} else VARYING
            found.append((math.prod(size for size, _ in digits), kind))
    return tuple(found)


def _distributed(digits: list[tuple[int, Kind]], shape: Sequence[int]) -> list[Layout] | None:
    """Return the digits of each axis, or None where they would have to be cut at odd places."""
    axes: list[Layout] = []
    for axis in reversed(shape):
        left, found = axis, []
        while left > 1:
            taken = _cut(digits, left)
            if taken is None:
                return None
            left //= taken[0]
            found.append(taken)
        axes.append(normal(reversed(found)))
    return axes[::-1]


def _aligned(layouts: list[list[tuple[int, Kind]]]) -> list[tuple[int, Kind]] | None:
    """Return joined digits, or None where some would have to be cut at odd places."""
    found: list[tuple[int, Kind]] = []
    while layouts[0]:
        size = min(digits[-1][0] for digits in layouts)
        taken = [_cut(digits, size) for digits in layouts]
        if any(one is None or one[0] != size for one in taken):
            return None
        found.append((size, _kind_of({one[1] for one in taken if one is not None})))
    return found[::-1]


def _cut(digits: list[tuple[int, Kind]], limit: int) -> tuple[int, Kind] | None:
    """Take what goes into a size off the end, if it divides it; a batch is not cut."""
    size, kind = digits.pop()
    if limit % size == 0:
        return size, kind
    if size % limit or kind == ROW:
        return None
    digits.append((size // limit, kind))
    return limit, kind


def _kind_of(kinds: set[Kind]) -> Kind:
    if ROW in kinds and VARYING in kinds:
        raise Unproven("rows meet values that differ from place to place in the batch")
    return next(kind for kind in (ROW, VARYING, UNIFORM) if kind in kinds)
