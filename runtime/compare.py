"""How far an answer is from the expected one, and where."""

import dataclasses

import numpy as np

from runtime.entries import Tolerance
from runtime.tensors import Array


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of one comparison.

    Attributes:
      ok: whether every element is within the tolerance.
      max_error: largest |got - expected|; infinite where one of them is not finite
        and the other is something else.
      where: index of the element that is furthest beyond its tolerance, or of the
        largest error when all are within.
      got: the element there.
      expected: what it was compared with.
    """

    ok: bool
    max_error: float
    where: tuple[int, ...] = ()
    got: object = None
    expected: object = None


def compare(got: Array, expected: Array, *, tolerance: Tolerance) -> Comparison:
    """Compare two arrays of one shape and dtype, element by element.

    An element passes if it equals the expected one (NaN equals NaN), or if both are
    finite and |got - expected| <= atol + rtol * |expected|.

    Raises:
      ValueError: shapes or dtypes differ.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ValueError(
            f"expected {expected.dtype.name}{list(expected.shape)}, "
            f"got {got.dtype.name}{list(got.shape)}"
        )
    if not got.size:
        return Comparison(ok=True, max_error=0.0)
    error = difference(got, expected)
    with np.errstate(invalid="ignore", over="ignore"):
        wide = np.abs(expected.astype(np.float64))
        allowed = tolerance.atol + tolerance.rtol * np.where(np.isfinite(wide), wide, 0.0)
    excess = error - allowed
    ok = bool((excess <= 0).all())
    at = int((error if ok else excess).argmax())
    where = tuple(int(i) for i in np.unravel_index(at, got.shape))
    return Comparison(ok, float(error.max()), where, got[where].item(), expected[where].item())


def difference(a: Array, b: Array) -> Array:
    """Return |a - b| as float64; 0 where equal (NaN too), infinite where only one is finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        error = np.asarray(np.abs(wide_a - wide_b))
    error[~np.isfinite(error)] = np.inf
    error[(a == b) | (np.isnan(wide_a) & np.isnan(wide_b))] = 0.0
    # 64-bit integers that differ by less than float64 can represent are still different.
    error[(a != b) & (error == 0.0) & ~(np.isnan(wide_a) & np.isnan(wide_b))] = 1.0
    return error


def largest_difference(a: Array, b: Array) -> float:
    """Return the largest |a - b|, 0.0 for empty arrays."""
    return float(difference(a, b).max()) if a.size else 0.0
