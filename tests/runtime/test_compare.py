"""Comparing an answer with the expected one: how far it is off, and where."""

import math

import ml_dtypes
import numpy as np
from pytest import approx, mark, param, raises

from runtime.compare import compare, largest_difference
from runtime.entries import Tolerance

EXACT = Tolerance(atol=0.0, rtol=0.0)
LOOSE = Tolerance(atol=1e300, rtol=1e300)


def floats(*values):
    """Make a float32 vector."""
    return np.array(values, np.float32)


def test_equal_arrays_match_exactly():
    """
    Equal elements need no tolerance.
    """
    comparison = compare(floats(1, 2), floats(1, 2), tolerance=EXACT)

    assert (comparison.ok, comparison.max_error) == (True, 0.0)


def test_largest_error_is_named_with_its_place():
    """
    Within tolerance, the place is that of the largest error.
    """
    got, expected = np.array([[1.0, 2.0], [3.5, 4.25]]), np.array([[1.0, 2.0], [3.0, 4.0]])

    comparison = compare(got, expected, tolerance=Tolerance(atol=1.0, rtol=0.0))

    assert comparison.ok
    assert comparison.max_error == 0.5
    assert (comparison.where, comparison.got, comparison.expected) == ((1, 0), 3.5, 3.0)


def test_worst_offender_is_named_with_its_place():
    """
    Beyond tolerance, the place is that of the element furthest beyond its own allowance.
    """
    got, expected = np.array([101.0, 0.5]), np.array([100.0, 0.0])

    comparison = compare(got, expected, tolerance=Tolerance(atol=0.1, rtol=0.01))

    assert not comparison.ok
    assert comparison.max_error == 1.0
    assert (comparison.where, comparison.got, comparison.expected) == ((1,), 0.5, 0.0)


def test_allowance_grows_with_the_expected_value():
    """
    An element may be off by atol + rtol * |expected|, to the bound itself.
    """
    tolerance = Tolerance(atol=0.5, rtol=0.25)

    assert compare(np.array([-9.0]), np.array([-6.0]), tolerance=tolerance).ok is False
    assert compare(np.array([-8.0]), np.array([-6.0]), tolerance=tolerance).ok is True


@mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_equals_itself_only(value):
    """
    NaN matches NaN and an infinity the same infinity; no tolerance lets anything else pass.
    """
    special, finite = floats(value), floats(0)

    assert compare(special, special, tolerance=EXACT).ok
    assert compare(special, finite, tolerance=LOOSE).ok is False
    assert compare(finite, special, tolerance=LOOSE).ok is False
    assert compare(special, finite, tolerance=LOOSE).max_error == math.inf


@mark.parametrize(("got", "expected"), [(np.inf, -np.inf), (np.nan, np.inf), (np.inf, np.nan)])
def test_different_specials_never_match(got, expected):
    """
    The two infinities and NaN are three different answers.
    """
    comparison = compare(floats(1, got), floats(1, expected), tolerance=LOOSE)

    assert (comparison.ok, comparison.where) == (False, (1,))


@mark.parametrize(
    ("dtype", "value"),
    [
        param(np.int64, 2**53, id="int64"),
        param(np.int64, -(2**63), id="smallest-int64"),
        param(np.uint64, 2**64 - 2, id="uint64"),
    ],
)
def test_large_integers_are_distinguished(dtype, value):
    """
    Integers that are one float64 but two numbers are different.
    """
    got, expected = np.array([value + 1], dtype), np.array([value], dtype)

    comparison = compare(got, expected, tolerance=EXACT)

    assert (comparison.ok, comparison.max_error) == (False, 1.0)
    assert (comparison.got, comparison.expected) == (value + 1, value)


@mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn])
def test_narrow_floats_are_compared_in_float64(dtype):
    """
    Differences of narrow floats are not rounded to their own few bits.
    """
    got, expected = np.array([1.5, 0.125], dtype), np.array([1.0, 0.125], dtype)

    comparison = compare(got, expected, tolerance=Tolerance(atol=0.4, rtol=0.0))

    assert (comparison.ok, comparison.max_error, comparison.where) == (False, 0.5, (0,))


def test_bfloat16_nan_equals_itself():
    """
    NaN of an extension dtype is NaN too.
    """
    nan = np.array([np.nan], ml_dtypes.bfloat16)

    assert compare(nan, nan.copy(), tolerance=EXACT).ok


def test_booleans_are_equal_or_off_by_one():
    """
    A flipped boolean is an error of one.
    """
    comparison = compare(np.array([True, False]), np.array([True, True]), tolerance=EXACT)

    assert (comparison.ok, comparison.max_error, comparison.where) == (False, 1.0, (1,))


def test_empty_arrays_match():
    """
    Where there is nothing to compare nothing is wrong.
    """
    assert compare(floats(), floats(), tolerance=EXACT).ok


def test_scalars_are_compared():
    """
    An array without axes has one element, at the place without indices.
    """
    comparison = compare(np.array(1.0), np.array(3.0), tolerance=EXACT)

    assert (comparison.ok, comparison.max_error, comparison.where) == (False, 2.0, ())


def test_other_shape_or_dtype_is_an_error():
    """
    Arrays of different kinds are never compared by broadcasting or casting.
    """
    with raises(ValueError, match=r"^expected float32\[2\], got float32\[1\]$"):
        compare(floats(1), floats(1, 1), tolerance=LOOSE)
    with raises(ValueError, match=r"^expected float32\[1\], got float64\[1\]$"):
        compare(np.array([1.0]), floats(1), tolerance=LOOSE)


def test_largest_difference_is_one_number():
    """
    Drift between two answers is their largest difference, none for empty ones.
    """
    assert largest_difference(floats(1, 2), floats(1, 2.5)) == approx(0.5)
    assert largest_difference(floats(), floats()) == 0.0
    assert largest_difference(floats(np.nan), floats(1)) == math.inf


@mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_equal_infinities_differ_by_nothing(dtype):
    """
    An infinity less itself is no NaN here, and elements beside it are compared as ever.
    """
    expected = np.array([-np.inf, 1.0, np.inf], dtype)
    got = np.array([-np.inf, 1.5, np.inf], dtype)

    comparison = compare(got, expected, tolerance=Tolerance(atol=0.4, rtol=0.0))

    assert (comparison.ok, comparison.max_error, comparison.where) == (False, 0.5, (1,))
    assert largest_difference(got, expected) == 0.5
    assert largest_difference(expected[::2], expected[::2].copy()) == 0.0


def test_differences_beyond_float64_are_infinite():
    """
    Two finite numbers too far apart for their difference to be one are infinitely far apart.
    """
    assert largest_difference(np.array([1e308]), np.array([-1e308])) == math.inf
