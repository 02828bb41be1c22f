"""What a StableHLO artifact says of itself: the custom calls it makes, and whether its time is fixed.

Read from the file's own bytes, before anything of them is compiled. `jax.extend.mlir`, which
reads them, and the names of operations are nothing that JAX promises.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from jax.extend import mlir
from jax.extend.mlir import ir

from runtime.errors import first_line

# How far a value is followed back. Those of JAX's loops are near.
_DEPTH = 64
# What JAX makes the bounds of loops and the choice of a platform from.
_ARITHMETIC = {
    "stablehlo.add",
    "stablehlo.broadcast_in_dim",
    "stablehlo.case",
    "stablehlo.clamp",
    "stablehlo.convert",
    "stablehlo.maximum",
    "stablehlo.minimum",
    "stablehlo.multiply",
    "stablehlo.reshape",
    "stablehlo.subtract",
}
# Shapes are static, whatever else a program is given.
_CONSTANT = {"stablehlo.constant", "stablehlo.get_dimension_size", "stablehlo.iota"}
_CALLS = {"func.call": "callee", "stablehlo.composite": "decomposition"}


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """What was found in an artifact.

    Attributes:
      custom_calls: targets of the custom calls inside, sorted.
      data_dependent: whether how long it runs depends on what it is given: it branches on a
        value, or has a loop whose number of turns is not written in it. Such a program may run
        for ever on inputs that were never tried. True as well where that is not known.
    """

    custom_calls: tuple[str, ...]
    data_dependent: bool


def contents(artifact: bytes) -> Contents:
    """Read a StableHLO portable artifact.

    Raises:
      ValueError: this jax does not read it.
    """
    with ir.Context():
        try:
            module = mlir.deserialize_portable_artifact(artifact)
        except Exception as error:
            raise ValueError(first_line(error)) from error
        operations = list(_operations(module.operation))
        calls = {
            ir.StringAttr(operation.attributes["call_target_name"]).value
            for operation in operations
            # By the end of its name: other dialects have a custom_call as well.
            if operation.name.endswith("custom_call")
        }
        return Contents(tuple(sorted(calls)), _Values(operations).decide())


def custom_calls(artifact: bytes) -> tuple[str, ...]:
    """Return the targets of the custom calls in a StableHLO artifact, sorted.

    Raises:
      ValueError: this jax does not read it.
    """
    return contents(artifact).custom_calls


class _Values:
    """The values of a module: which are the same in every run.

    Args:
      operations: of the module, all of them.
    """

    def __init__(self, operations: list[Any]) -> None:
        self._operations = operations
        self._known: dict[Any, bool] = {}
        self._callers: dict[str, list[Any]] = {}
        for operation in operations:
            if operation.name in _CALLS:
                name = ir.FlatSymbolRefAttr(operation.attributes[_CALLS[operation.name]]).value
                self._callers.setdefault(name, []).append(operation)

    def decide(self) -> bool:
        """Whether a value that differs between runs decides what is run, or how often."""
        return any(
            (op.name == "stablehlo.while" and not self._counts(op))
            or (op.name in ("stablehlo.case", "stablehlo.if") and not self._fixed(op.operands[0]))
            for op in self._operations
        )

    def _counts(self, loop: Any) -> bool:
        """Whether a loop counts from one fixed number up to another, one at a time.

        As `scan`, `map` and `fori_loop` do. Steps of one neither jump over the end nor wrap around.
        """
        condition, body = (region.blocks[0] for region in loop.regions)
        (goes_on,) = _returned(condition)
        if _made_by(goes_on) != "stablehlo.compare":
            return False
        counter, end = goes_on.owner.operands
        direction = str(goes_on.owner.attributes["comparison_direction"])
        place = _place(counter, condition)
        if place is None or " LT" not in direction or "tensor<i" not in str(counter.type):
            return False
        carried = _place(end, condition)  # the end may be handed from turn to turn
        if carried is not None:
            if _place(_returned(body)[carried], body) != carried:
                return False
            end = loop.operands[carried]
        return (
            self._fixed(loop.operands[place])
            and self._fixed(end)
            and _is_next(_returned(body)[place], body, place)
        )

    def _fixed(self, value: Any, depth: int = 0) -> bool:
        """Whether a value is made of constants, and of the index of the platform, alone."""
        if value not in self._known:
            self._known[value] = False  # for functions that call each other
            self._known[value] = depth < _DEPTH and self._is_fixed(value, depth + 1)
        return self._known[value]

    def _is_fixed(self, value: Any, depth: int) -> bool:
        if isinstance(value.owner, ir.Block):
            return self._is_fixed_argument(value, depth)
        operation = value.owner.operation
        if operation.name in _CONSTANT:
            return True
        if operation.name not in _ARITHMETIC:
            return False
        results = (v for region in operation.regions for v in _returned(region.blocks[0]))
        return all(self._fixed(v, depth) for v in (*operation.operands, *results))

    def _is_fixed_argument(self, value: Any, depth: int) -> bool:
        """Whether the argument of a function is the same wherever that is called."""
        function = value.owner.owner.operation
        if function.name != "func.func":
            return False
        place = ir.BlockArgument(value).arg_number
        if "arg_attrs" in function.attributes:
            written = str(ir.ArrayAttr(function.attributes["arg_attrs"])[place])
            if "_platform_index" in written:
                return True  # compiling for a device fixes it
        callers = self._callers.get(ir.StringAttr(function.attributes["sym_name"]).value, [])
        return bool(callers) and all(self._fixed(c.operands[place], depth) for c in callers)


def _operations(root: Any) -> Iterator[Any]:
    left = [root]
    while left:
        operation = left.pop()
        yield operation
        left += [op.operation for region in operation.regions for b in region for op in b]


def _is_next(value: Any, body: Any, place: int) -> bool:
    """Whether a value is what a loop's body was given at a place, and one more."""
    if _made_by(value) != "stablehlo.add":
        return False
    a, b = value.owner.operands
    return (_place(a, body) == place and _is_one(b)) or (_place(b, body) == place and _is_one(a))


def _is_one(value: Any) -> bool:
    if _made_by(value) == "stablehlo.convert":
        value = value.owner.operands[0]
    one = _made_by(value) == "stablehlo.constant"
    return one and "dense<1>" in str(value.owner.attributes["value"])


def _place(value: Any, block: Any) -> int | None:
    """Return which of a block's arguments a value is; None for another value."""
    if isinstance(value.owner, ir.Block) and value.owner == block:
        return int(ir.BlockArgument(value).arg_number)
    return None


def _returned(block: Any) -> list[Any]:
    return list(list(block.operations)[-1].operands)


def _made_by(value: Any) -> str:
    return "" if isinstance(value.owner, ir.Block) else str(value.owner.operation.name)
