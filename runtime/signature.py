"""What goes into and comes out of every program, and how tensors are written.

Read with the standard library alone, as part of the manifest.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from runtime.errors import ManifestError, printable
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
        name = node.take("name", str)
        dtype = node.choice("dtype", DTYPE_BYTES)
        dims: list[Dim] = []
        for i, dim in enumerate(node.take("shape", list)):
            where = f"{node.where}.shape[{i}]"
            if (type(dim) is int and dim >= 0) or (type(dim) is str and (dim == BATCH) == (i == 0)):
                dims.append(dim)
            else:
                raise ManifestError(
                    f"expected '_' first, then sizes or axis names, got {dim!r}", where
                )
        if not dims or dims[0] != BATCH:
            raise ManifestError("expected a shape that begins with '_'", f"{node.where}.shape")
        spec = cls(
            name=name,
            dtype=dtype,
            shape=tuple(dims),
            pad=node.number("pad"),
            mask=node.optional("mask", bool) or False,
            minimum=node.optional("minimum", int),
            maximum=node.either("maximum", int, str),
            nonfinite=_nonfinite(node) if node.version >= 4 else None,
        )
        spec._check(node.where)
        return spec

    def _check(self, where: str) -> None:
        """Refuse what would only fail later, or silently, when rows are padded and checked."""
        if self.mask and not any(isinstance(dim, str) for dim in self.shape[1:]):
            raise ManifestError(f"expected a bucketed axis for a mask, got {self}", f"{where}.mask")
        whole = "float" not in self.dtype
        if self.nonfinite and whole:
            raise ManifestError(
                f"expected a floating dtype for infinities, got {self.dtype}", f"{where}.nonfinite"
            )
        low, high = limits(self.dtype)
        for key, value in (("minimum", self.minimum), ("maximum", self.maximum), ("pad", self.pad)):
            if value is None:
                continue
            if not whole and key != "pad":
                raise ManifestError(
                    f"expected an integer dtype for a range, got {self.dtype}", f"{where}.{key}"
                )
            if isinstance(value, str):
                continue  # the signature knows the axes
            if not low <= value <= high or (whole and type(value) is not int):
                raise ManifestError(
                    f"expected a value of {self.dtype}, got {value}", f"{where}.{key}"
                )
        top = self.maximum
        if self.minimum is not None and isinstance(top, int) and self.minimum > top:
            raise ManifestError(
                f"expected at least the minimum {self.minimum}, got {top}",
                f"{where}.maximum",
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
        increasing(axis.sizes, f"{node.where}.sizes")
        if not 0 <= axis.minimum <= axis.sizes[0]:
            raise ManifestError(
                f"expected a size up to {axis.sizes[0]}, got {axis.minimum}",
                f"{node.where}.minimum",
            )
        return axis


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What goes in, what comes out, and which axes come in several sizes."""

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
        known = {axis.name for axis in signature.axes}
        for key, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            where = f"{node.where}.{key}"
            unique((spec.name for spec in specs), where)
            if not specs:
                raise ManifestError("expected at least one tensor", where)
            for i, spec in enumerate(specs):
                if spec.nonfinite and key == "inputs":
                    raise ManifestError(
                        f"expected none for an input, got {spec.nonfinite!r}",
                        f"{where}[{i}].nonfinite",
                    )
                for dim in spec.shape[1:]:
                    if isinstance(dim, str) and dim not in known:
                        raise ManifestError(f"{spec.name!r} names an unknown axis {dim!r}", where)
        signature._check_lengths(node.where)
        if all(spec.mask for spec in signature.inputs):
            raise ManifestError("expected an input that is not a mask", f"{node.where}.inputs")
        unique((axis.name for axis in signature.axes), f"{node.where}.axes")
        return signature

    def _check_lengths(self, where: str) -> None:
        """Refuse a maximum that names no axis, and a minimum beyond the shortest inputs."""
        least = {axis.name: axis.minimum for axis in self.axes}
        had = {dim for spec in self.inputs if not spec.mask for dim in spec.shape[1:]}
        for i, spec in enumerate(self.outputs):
            if isinstance(spec.maximum, str):
                raise ManifestError("expected int, got string", f"{where}.outputs[{i}].maximum")
        for i, spec in enumerate(self.inputs):
            if not isinstance(spec.maximum, str):
                continue
            if spec.maximum not in least or spec.maximum not in had:
                raise ManifestError(
                    f"expected a number, or an axis of an input that is no mask, got "
                    f"{spec.maximum!r}",
                    f"{where}.inputs[{i}].maximum",
                )
            if spec.minimum is not None and spec.minimum > least[spec.maximum]:
                raise ManifestError(
                    f"expected at most {least[spec.maximum]}, the minimum of axis "
                    f"{spec.maximum!r}, got {spec.minimum}",
                    f"{where}.inputs[{i}].minimum",
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


def increasing(sizes: tuple[int, ...], where: str) -> None:
    """Raise ManifestError unless sizes increase from 1 on."""
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise ManifestError(f"expected increasing sizes from 1 on, got {list(sizes)}", where)


def unique(names: Iterable[str], where: str) -> None:
    """Raise ManifestError if a name stands twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ManifestError(f"duplicate name {name!r}", where)
        seen.add(name)
