"""The inputs and outputs of every program, and how tensors are written.

Read with the standard library alone, as part of the manifest.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from runtime.errors import InvalidField, printable
from runtime.node import Node, required

Dim = int | str

BATCH = "_"
# What an output may hold beside finite numbers.
NONFINITE = ("infinities",)
DTYPE_BYTES: Mapping[str, int] = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}


def limits(dtype: str) -> tuple[float, float]:
    """Return the smallest and largest value of a dtype; infinite for floats."""
    if "float" in dtype:
        return -math.inf, math.inf
    bits = 1 if dtype == "bool" else 8 * DTYPE_BYTES[dtype]
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype[0] == "i" else (0, 2**bits - 1)


def notation(dtype: str, shape: Iterable[Dim]) -> str:
    """Write a tensor the way every message and page does: `float32[_, 28, 28, 1]`."""
    return f"{dtype}[{', '.join(str(dim) for dim in shape)}]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One named input or output of every program.

    Attributes:
      name: how callers address it.
      dtype: NumPy or ml_dtypes name.
      shape: leading `_` for the batch, then sizes, or the name of a bucketed axis.
      pad: value that fills a bucketed axis behind the last real element (inputs only).
      mask: True for an input that is 1 on real elements and 0 on padding; a caller
        may leave it out.
      minimum: smallest value that an integer input accepts, or None.
      maximum: largest value that an integer input accepts, or None; or the name of a bucketed
        axis, for lengths: no more than the other inputs have on it, before they are padded.
      nonfinite: `infinities` for a floating output that rightly holds them, such as masked
        logits; None for one that is finite (outputs only). NaN is never right.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    pad: int | float = 0
    mask: bool = False
    minimum: int | None = None
    maximum: int | str | None = None
    nonfinite: str | None = None

    def __str__(self) -> str:
        """Write the tensor in the project's notation."""
        return notation(self.dtype, self.shape)

    def concrete(self, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with `_` and axis names replaced by sizes."""
        return tuple(
            dim if isinstance(dim, int) else batch if dim == BATCH else sizes[dim]
            for dim in self.shape
        )

    def row_bytes(self, sizes: Mapping[str, int]) -> int:
        """Return the bytes of one row at these axis sizes."""
        total = DTYPE_BYTES[self.dtype]
        for size in self.concrete(1, sizes):
            total *= size
        return total

    @classmethod
    def from_node(cls, node: Node) -> "TensorSpec":
        """Read one entry of `$.signature.inputs` or `.outputs`."""
        spec = cls(
            name=node.take("name", str),
            dtype=node.take("dtype", str),
            shape=tuple(node.take("shape", list)),
            pad=node.number("pad"),
            mask=node.optional("mask", bool) or False,
            minimum=node.optional("minimum", int),
            maximum=node.either("maximum", int, str),
            nonfinite=_nonfinite(node) if node.version >= 4 else None,
        )
        spec.check()
        return spec

    def check(self) -> None:
        """Raise InvalidField for what no tensor may be, or what fails only when rows are padded."""
        if self.dtype not in DTYPE_BYTES:
            raise InvalidField(
                f"expected a dtype of {', '.join(DTYPE_BYTES)}, got {self.dtype!r}", "dtype"
            )
        for i, dim in enumerate(self.shape or ("",)):
            if not (
                (dim == BATCH) == (i == 0)
                if type(dim) is str
                else type(dim) is int and dim >= 0 and i > 0
            ):
                raise misplaced(dim, i)
        if self.mask and not any(isinstance(dim, str) for dim in self.shape[1:]):
            raise InvalidField(f"expected a bucketed axis for a mask, got {self}", "mask")
        if self.nonfinite and "float" not in self.dtype:
            raise InvalidField(
                f"expected a floating dtype for infinities, got {self.dtype}", "nonfinite"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        whole = "float" not in self.dtype
        low, high = limits(self.dtype)
        for key, value in (("minimum", self.minimum), ("maximum", self.maximum), ("pad", self.pad)):
            if value is None:
                continue
            if not whole and key != "pad":
                raise InvalidField(f"expected an integer dtype for a range, got {self.dtype}", key)
            if isinstance(value, str):
                continue  # the signature knows the axes
            # JSON has no infinity to pad with.
            fits = low <= value <= high and abs(value) != math.inf
            if not fits or (whole and type(value) is not int):
                raise InvalidField(f"expected a {key} of {self.dtype}, got {value}", key)
        top = self.maximum
        if self.minimum is not None and isinstance(top, int) and self.minimum > top:
            raise InvalidField(
                f"expected a maximum of at least the minimum {self.minimum}, got {top}", "maximum"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A bucketed axis beside the batch.

    Attributes:
      name: as shapes name it.
      sizes: of its buckets, increasing.
      minimum: the smallest size that inputs may have.
    """

    name: str
    sizes: tuple[int, ...]
    minimum: int = 1

    @classmethod
    def from_node(cls, node: Node) -> "Axis":
        """Read one entry of `$.signature.axes`."""
        minimum = node.optional("minimum", int)
        axis = cls(
            name=node.take("name", str),
            sizes=node.items("sizes", int),
            minimum=1 if minimum is None else minimum,
        )
        axis.check()
        return axis

    def check(self) -> None:
        """Raise InvalidField for sizes that do not increase, or a minimum above the first."""
        increasing(self.sizes, "sizes")
        if not 0 <= self.minimum <= self.sizes[0]:
            raise InvalidField(
                f"expected a minimum up to its first size {self.sizes[0]}, got {self.minimum}",
                "minimum",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The inputs, the outputs, and the axes that have several sizes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...] = required(())

    @classmethod
    def from_node(cls, node: Node) -> "Signature":
        """Read `$.signature`."""
        signature = cls(
            inputs=node.each("inputs", TensorSpec.from_node),
            outputs=node.each("outputs", TensorSpec.from_node),
            axes=node.each("axes", Axis.from_node),
        )
        signature._check()
        return signature

    def _check(self) -> None:
        check_inputs(self.inputs, self.axes)
        _check_tensors("outputs", self.outputs, self.axes)
        for i, spec in enumerate(self.outputs):
            if isinstance(spec.maximum, str):
                raise InvalidField("expected int, got string", "outputs", i, "maximum")


def check_inputs(inputs: Sequence[TensorSpec], axes: Sequence[Axis]) -> None:
    """Raise InvalidField for inputs that are each allowed, and not together or with these axes."""
    unique((axis.name for axis in axes), "axes")
    _check_tensors("inputs", inputs, axes)
    for i, spec in enumerate(inputs):
        if spec.nonfinite:
            raise InvalidField(
                f"expected no nonfinite for an input, got {spec.nonfinite!r}",
                *("inputs", i, "nonfinite"),
            )
    if all(spec.mask for spec in inputs):
        raise InvalidField("expected an input that is not a mask, got masks only", "inputs")
    _check_lengths(inputs, axes)


def _check_tensors(key: str, specs: Sequence[TensorSpec], axes: Sequence[Axis]) -> None:
    if not specs:
        raise InvalidField("expected at least one, got none", key)
    unique((spec.name for spec in specs), key)
    known = {axis.name for axis in axes}
    for i, spec in enumerate(specs):
        for j, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim not in known and dim != BATCH:
                raise InvalidField(
                    f"{spec.name!r} names an unknown axis {dim!r}", key, i, "shape", j
                )


def _check_lengths(inputs: Sequence[TensorSpec], axes: Sequence[Axis]) -> None:
    """Refuse a maximum that names no axis, and a minimum beyond the shortest inputs."""
    of_inputs = {dim for spec in inputs if not spec.mask for dim in spec.shape[1:]}
    minimums = {axis.name: axis.minimum for axis in axes if axis.name in of_inputs}
    for i, spec in enumerate(inputs):
        top = spec.maximum
        if not isinstance(top, str):
            continue
        if top not in minimums:
            known = f" or an axis of {', '.join(map(repr, minimums))}" if minimums else ""
            raise InvalidField(
                f"expected a number{known} as maximum, got {top!r}",
                *("inputs", i, "maximum"),
            )
        if spec.minimum is not None and spec.minimum > minimums[top]:
            raise InvalidField(
                f"expected a minimum up to {minimums[top]}, the minimum of axis {top!r}, got "
                f"{spec.minimum}",
                *("inputs", i, "minimum"),
            )


def misplaced(dim: object, place: int) -> InvalidField:
    """Return the error for what is no dimension in its place of a shape."""
    return InvalidField(
        f"expected [{BATCH}, …] with sizes or axis names after the batch, got {dim!r}",
        *("shape", place),
    )


def _nonfinite(node: Node) -> str | None:
    value = node.optional("nonfinite", str)
    return None if value is None else node.check("nonfinite", value, NONFINITE)


def bucket_name(signature: Signature, sizes: Sequence[int], batch: int) -> str:
    """Return the name of a bucket: `b8`, `b8-seq32`.

    Args:
      signature: with the bucketed axes.
      sizes: of these axes.
      batch: batch size.
    """
    return join_bucket_name([printable(axis.name) for axis in signature.axes], sizes, batch)


def join_bucket_name(axes: Iterable[str], sizes: Iterable[int], batch: int) -> str:
    """Return the name of a bucket from the names of its axes; see `bucket_name`."""
    return "-".join([f"b{batch}", *(f"{n}{s}" for n, s in zip(axes, sizes, strict=True))])


def increasing(sizes: Sequence[int], *path: str) -> None:
    """Raise InvalidField unless sizes increase from 1 on."""
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise InvalidField(f"expected increasing sizes from 1 on, got {list(sizes)}", *path)


def unique(names: Iterable[str], *path: str) -> None:
    """Raise InvalidField if a name is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidField(f"expected each name once, got {name!r} twice", *path)
        seen.add(name)
