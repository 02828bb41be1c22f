"""Constants of a model's code as params of all its programs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from export.constants import (
    excess_constants,
    first_use,
    inlined_constants,
    movable_constants,
    with_constants,
)
from export.errors import ExportError
from export.lowering import Flat
from export.matching import floating
from export.packing import Packing, plan_packing
from runtime.signature import DTYPE_BYTES
from runtime.tensors import Array

# How many hoisted constants are named one by one.
_SHOWN = 4
TAKE_AS_PARAMS = "weights that a function closes over have names if it takes them as params"
# Bytes of floating constants that are noted wherever they stay, and where the params are fewer.
_NOTED = 64 << 10
_SMALL = 1 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class Hoisted:
    """What was taken out of the programs.

    Attributes:
      constants: by name.
      packing: the place of each in the arguments behind the model's own.
      notes: what was taken out and what was not, a sentence each.
      order: digest of a constant to its place among them.
      count: number of the model's own arguments.
    """

    constants: dict[str, Array]
    packing: Packing
    notes: tuple[str, ...]
    order: dict[str, int]
    count: int

    def apply(self, jaxpr: Any) -> Flat:
        """Return the traced function with the constants' arguments behind its own."""
        function = with_constants(jaxpr, self.order, self.count)

        def apply(arguments: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
            constants = self.packing.unpack(arguments[self.count :])
            return function([*arguments[: self.count], *constants.values()], inputs)

        return apply


def hoist(jaxprs: Sequence[Any], packing: Packing, closure: str | None) -> Hoisted:
    """Decide which constants become params: all of those programs that hold over 1 MiB of them.

    Args:
      jaxprs: of the programs, each of a function of packed params and inputs.
      packing: of the model's own params.
      closure: what to do about weights that a function closes over; None where the model is no
        function, whose constants are hardly weights.

    Raises:
      ExportError: a param has the name that a constant would get.
    """
    found: dict[str, Array] = {}
    for jaxpr in jaxprs:
        found |= excess_constants(jaxpr)
    constants = {f"constant/{i}": array for i, array in enumerate(found.values())}
    apart = plan_packing(constants, shared="constant")
    taken = {entry.name for entry in packing.entries}
    if taken & {*constants, *apart.arguments}:
        raise ExportError("params: expected no param named 'constant/…', got one")
    return Hoisted(
        constants=constants,
        packing=apart,
        notes=(
            *_hoisted(constants, jaxprs[0], closure or TAKE_AS_PARAMS),
            *_stuck(inlined_constants(jaxprs[0])),
            *(() if found or closure is None else _kept(jaxprs[0], packing, closure)),
        ),
        order={key: i for i, key in enumerate(found)},
        count=len(packing.arguments),
    )


def _kept(jaxpr: Any, packing: Packing, advice: str) -> list[str]:
    """Return a note on constants that are small enough to stay, and may yet be the model's weights."""
    arrays = [array for array in movable_constants(jaxpr).values() if floating(array)]
    size = sum(array.nbytes for array in arrays)
    params = sum(math.prod(e.shape) * DTYPE_BYTES[e.dtype] for e in packing.entries)
    if size < _SMALL or (size < _NOTED and size <= params):
        return []
    line = first_use(jaxpr)
    place = f", first used at {line}," if line else ""
    if len(arrays) == 1:
        what = f"a constant {_brief(arrays[0])} of the model's code{place} stays"
    else:
        what = f"{_together(arrays)}{place} stay"
    return [f"{what} inside every program; {advice}"]


def _hoisted(constants: dict[str, Array], jaxpr: Any, advice: str) -> list[str]:
    if len(constants) <= _SHOWN:
        return [
            f"a constant {_brief(array)} of the model's code became the param {name!r}"
            for name, array in constants.items()
        ]
    line = first_use(jaxpr)
    place = f", first used at {line}," if line else ""
    names = list(constants)
    became = f"{_together(list(constants.values()))}{place} became the params"
    return [f"{became} {names[0]!r} to {names[-1]!r}; {advice}"]


def _stuck(arrays: Sequence[Array]) -> list[str]:
    if len(arrays) <= _SHOWN:
        return [
            f"a constant {_brief(array)} of the model's code stays inside every program"
            for array in arrays
        ]
    return [f"{_together(arrays)} stay inside every program"]


def _together(arrays: Sequence[Array]) -> str:
    return f"{len(arrays)} constants of the model's code ({_size(sum(a.nbytes for a in arrays))})"


def _brief(array: Array) -> str:
    return f"{array.dtype.name}{list(array.shape)} ({_size(array.nbytes)})"


def _size(count: int) -> str:
    mebibytes = count / 2**20
    return f"{mebibytes:.1f} MiB" if mebibytes >= 0.1 else f"{count / 2**10:.1f} KiB"
