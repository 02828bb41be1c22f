"""Row independence: does a row's answer depend on the rows beside it?

For every program, at the first, a middle and the last position, the other rows are
replaced by random rows, zeros, NaN, extremes and copies of the row itself. The row's
answer must stay bitwise the same, wherever the row stands. Copies matter because
padding repeats a row: a capacity-routed mixture of experts passes all the others and
fails there.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.compare import largest_difference
from runtime.signature import TensorSpec
from runtime.tensors import Array, numpy_dtype

Run = Callable[[tuple[Array, ...]], tuple[Array, ...]]
Rows = tuple[Array, ...]

# Runs a program on each of several batches, in order: `map`, or that of a pool of threads.
Each = Callable[[Run, Iterable[Rows]], Iterable[Rows]]

# Batches up to this size are probed with the row in one position at a time.
ONE_BY_ONE = 8
KINDS = ("random", "zeros", "nan", "extremes", "copies")


@dataclasses.dataclass(frozen=True, slots=True)
class Mixing:
    """One way in which a row's answer was seen to depend on something else.

    Attributes:
      bucket: the program, such as `b8` or `b8-seq32`.
      output: the output that changed.
      position: where the row stood.
      cause: what the other rows were replaced by, or `position`; `mates` where it is not known
        which of the two it was.
      change: largest difference it made to the row's answer.
    """

    bucket: str
    output: str
    position: int
    cause: str
    change: float

    def __str__(self) -> str:
        """Return it in one sentence."""
        cause = {
            "position": "the row moved",
            "nan": "the other rows became NaN",
            "copies": "the other rows became copies of it",
            "mates": "it moved among other rows",
        }.get(self.cause, f"the other rows became {self.cause}")
        return (
            f"{self.bucket}, output {self.output!r}: row {self.position} changed by "
            f"{self.change:.3g} when {cause}"
        )


def find_mixing(
    run: Run,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    rows: Rows,
    bucket: str,
    *,
    kinds: Sequence[str] = KINDS,
    each: Each = map,
) -> list[Mixing]:
    """Probe one program.

    Args:
      run: the program; inputs to outputs, in the signature's order.
      inputs: the signature's inputs, for dtypes and legal ranges.
      outputs: names of the outputs.
      rows: legal inputs that fill the bucket exactly, at least two rows.
      bucket: how to name it.
      kinds: which replacements to try.
      each: runs it on batches, perhaps several at once.

    Returns:
      For each output the largest change that each cause made; empty if independent.
    """
    batch = len(rows[0])
    positions = sorted({0, batch // 2, batch - 1})
    found: dict[tuple[str, str], Mixing] = {}

    def note(cause: str, position: int, before: Rows, after: Rows) -> None:
        for name, a, b in zip(outputs, before, after, strict=True):
            if same_bits(a, b):
                continue
            change = largest_difference(a, b)
            known = found.get((name, cause))
            if known is None or change > known.change:
                found[name, cause] = Mixing(bucket, name, position, cause, change)

    own = tuple(a[:1] for a in rows)
    moved = (tuple(np.roll(a, position, axis=0) for a in rows) for position in positions)
    bases = {
        position: tuple(_row(o, position) for o in got)
        for position, got in zip(positions, each(run, moved), strict=True)
    }
    for position in positions:
        note("position", position, bases[0], bases[position])
    tries = [
        (kind, at, mates)
        for kind, mates in mates(inputs, own, batch, kinds)
        for at in _placings(kind, batch, positions)
    ]
    batches = (_placed(own, mates, at) for _, at, mates in tries)
    for (kind, at, _), got in zip(tries, each(run, batches), strict=True):
        for position in at:
            note(kind, position, bases[position], tuple(_row(o, position) for o in got))
    return list(found.values())


def count_runs(inputs: Sequence[TensorSpec], batch: int) -> int:
    """Return how often `find_mixing` runs a program of this batch, with all kinds."""
    if batch == 1:
        return 0
    positions = sorted({0, batch // 2, batch - 1})
    kinds = [kind for kind in KINDS if kind != "nan" or any(map(is_floating, inputs))]
    return len(positions) + sum(len(_placings(kind, batch, positions)) for kind in kinds)


def _placings(kind: str, batch: int, positions: list[int]) -> list[list[int]]:
    """Return where the row stands in each run with others of a kind.

    In a large batch it stands in all positions at once: a third of the runs, and enough others
    are left to be replaced. Copies make one batch, wherever the row is said to stand.
    """
    if batch > ONE_BY_ONE or kind == "copies":
        return [positions]
    return [[position] for position in positions]


def _row(output: Array, position: int) -> Array:
    return output[position : position + 1].copy()


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays are the same bit for bit: minus zero is not zero."""
    return a.tobytes() == b.tobytes()


def _placed(own: Rows, mates: Rows, positions: Sequence[int]) -> Rows:
    placed = tuple(mate.copy() for mate in mates)
    for target, row in zip(placed, own, strict=True):
        target[list(positions)] = row[0]
    return placed


def mates(
    inputs: Sequence[TensorSpec], own: Rows, batch: int, kinds: Sequence[str]
) -> Iterator[tuple[str, Rows]]:
    """Yield a full batch of other rows for each kind that these dtypes have."""
    rng = np.random.default_rng(7)
    sizes = {
        dim: size
        for spec, row in zip(inputs, own, strict=True)
        for dim, size in zip(spec.shape[1:], row.shape[1:], strict=True)
        if isinstance(dim, str)
    }
    for kind in kinds:
        if kind == "nan" and not any(is_floating(spec) for spec in inputs):
            continue
        yield (
            kind,
            tuple(
                _other(kind, spec, row, batch, sizes, rng)
                for spec, row in zip(inputs, own, strict=True)
            ),
        )


def is_floating(spec: TensorSpec) -> bool:
    """Whether an input has a floating dtype, and so a NaN."""
    return "float" in spec.dtype


def _other(
    kind: str,
    spec: TensorSpec,
    row: Array,
    batch: int,
    sizes: Mapping[str, int],
    rng: np.random.Generator,
) -> Array:
    shape = (batch, *row.shape[1:])
    if kind == "copies":
        return np.repeat(row, batch, axis=0)
    if kind == "random":
        return draw(spec, shape, sizes, rng)
    low, high = bounds(spec, sizes)
    if kind == "zeros":
        return np.full(shape, min(max(0, low), high), row.dtype)
    if kind == "nan" and is_floating(spec):
        return np.full(shape, np.nan, row.dtype)
    # Extremes, and what stands in for NaN where a dtype has none.
    out = np.full(shape, high, row.dtype)
    out[::2] = low
    return out


def bounds(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[Any, Any]:
    """Return the smallest and largest legal value of an input where axes have these sizes."""
    dtype = numpy_dtype(spec.dtype)
    if dtype == np.bool_ or spec.mask:
        return 0, 1
    if is_floating(spec):
        import ml_dtypes

        info = ml_dtypes.finfo(dtype)
        return float(info.min), float(info.max)
    whole = np.iinfo(dtype)
    low = int(whole.min) if spec.minimum is None else spec.minimum
    if isinstance(spec.maximum, str):
        return low, min(int(whole.max), sizes[spec.maximum])
    return low, int(whole.max) if spec.maximum is None else spec.maximum


# Integers without a declared range: small enough for most tables, not all alike.
UNDECLARED = (0, 9)


def draw(
    spec: TensorSpec, shape: tuple[int, ...], sizes: Mapping[str, int], rng: np.random.Generator
) -> Array:
    """Draw legal values: normal for floats, uniform in the range for integers and masks.

    An integer input without a range is drawn from 0..9, or all of an 8-bit type.
    """
    dtype = numpy_dtype(spec.dtype)
    if is_floating(spec):
        return rng.standard_normal(shape).astype(dtype)
    low, high = bounds(spec, sizes)
    if spec.minimum is None and spec.maximum is None and dtype.itemsize > 1:
        low, high = UNDECLARED if not spec.mask else (0, 1)
    return rng.integers(
        low, high, shape, dtype=np.int64 if high < 2**63 else np.uint64, endpoint=True
    ).astype(dtype)
