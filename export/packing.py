"""Small params packed into one argument per dtype.

A program's call costs about 2 µs for each argument, whatever its size, so a model of
hundreds of biases and scales pays for them with every request. Small arrays are laid
end to end in one array and cut out of it inside the program, where XLA fuses the cut
with its use. Large ones stay arguments of their own: cutting them out would copy them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from export.errors import ExportError
from runtime.entries import Param
from runtime.tensors import ALIGNMENT, Array

# Where copying an array costs as much as passing it: bench/packing.py.
SMALL_BYTES = 16 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Packing:
    """The place of each param in the arguments.

    Attributes:
      entries: one per param, in the model's order.
      arguments: names of the arguments, in calling order.
    """

    entries: tuple[Param, ...]
    arguments: tuple[str, ...]

    def __add__(self, other: "Packing") -> "Packing":
        return Packing(self.entries + other.entries, self.arguments + other.arguments)

    def unpack(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """Cut the params out of the arguments; traceable."""
        found = dict(zip(self.arguments, arguments, strict=True))
        params = {}
        for entry in self.entries:
            array = found[entry.argument]
            if array.shape != entry.shape or entry.argument != entry.name:
                size = math.prod(entry.shape)
                cut = jax.lax.slice(array, (entry.offset,), (entry.offset + size,))
                array = jax.lax.reshape(cut, entry.shape)
            params[entry.name] = array
        return params

    def pack(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """Lay the params out as arguments, by name in calling order."""
        out: dict[str, Array] = {}
        for name in self.arguments:
            inside = [e for e in self.entries if e.argument == name]
            if inside[0].name == name:
                out[name] = params[name]
                continue
            last = inside[-1]
            size = last.offset + math.prod(last.shape)
            unit = ALIGNMENT // params[last.name].dtype.itemsize
            flat = np.zeros(-(-size // unit) * unit, params[last.name].dtype)
            for e in inside:
                flat[e.offset : e.offset + math.prod(e.shape)] = params[e.name].reshape(-1)
            out[name] = flat
        return out


def plan_packing(
    params: Mapping[str, Array], small_bytes: int = SMALL_BYTES, shared: str = "packed"
) -> Packing:
    """Decide which params share an argument: those up to `small_bytes`, by dtype.

    Args:
      params: by name, in the model's order.
      small_bytes: the largest array that is packed.
      shared: the beginning of the names of shared arguments.

    Raises:
      ExportError: a param has the name that packed ones would share.
    """
    small: dict[str, list[str]] = {}
    for name, array in params.items():
        if array.nbytes <= small_bytes:
            small.setdefault(array.dtype.name, []).append(name)
    packed = {
        n: f"{shared}/{dtype}" for dtype, names in small.items() if len(names) > 1 for n in names
    }
    clash = sorted(set(packed.values()) & set(params))
    if clash:
        raise ExportError(f"params: expected no param named '{shared}/…', got {clash[0]!r}")
    ends: dict[str, int] = {}
    entries = []
    for name, array in params.items():
        argument = packed.get(name, name)
        offset = ends.get(argument, 0) if name in packed else 0
        ends[argument] = offset + array.size
        shape = tuple(int(dim) for dim in array.shape)
        entries.append(
            Param(name=name, dtype=array.dtype.name, shape=shape, argument=argument, offset=offset)
        )
    return Packing(tuple(entries), tuple(ends))
