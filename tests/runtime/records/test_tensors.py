"""JSON numbers, and bytes, to arrays of a dtype: nothing is coerced."""

import math
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, param, raises

from runtime.errors import SignatureMismatch
from runtime.records.tensors import convert, from_bytes, kind_of, refuse
from runtime.signature import DTYPE_BYTES, limits
from runtime.tensors import numpy_dtype

WHOLE = [dtype for dtype in DTYPE_BYTES if "int" in dtype]
REAL = [dtype for dtype in DTYPE_BYTES if "float" in dtype]


@mark.parametrize("dtype", WHOLE)
def test_the_ends_of_an_integer_dtype_are_exact(dtype):
    """The smallest and the largest value arrive as they are; one beyond is refused."""
    low, high = limits(dtype)

    assert convert(dtype, [low, high]).tolist() == [low, high]
    assert convert(dtype, [low - 1]) is None
    assert convert(dtype, [high + 1]) is None


@mark.parametrize("dtype", DTYPE_BYTES)
def test_an_array_has_the_dtype_and_the_shape_of_its_lists(dtype):
    """Every dtype of the format is made, native and nested as the lists are."""
    one = dtype == "bool" or 1

    array = convert(dtype, [[one, one, one], [one, one, one]])

    assert array.dtype == numpy_dtype(dtype)
    assert array.dtype.isnative
    assert array.shape == (2, 3)


@mark.parametrize(
    ("values", "shape"),
    [([], (0,)), ([[], []], (2, 0)), ([[[]]], (1, 1, 0)), (3, ()), (3.0, ())],
)
@mark.parametrize("dtype", ["float32", "int8", "float8_e4m3fn"])
def test_empty_lists_and_lone_numbers_have_shapes_too(dtype, values, shape):
    """Lists without elements keep the sizes that they show."""
    assert convert(dtype, values).shape == shape


@mark.parametrize("dtype", WHOLE)
@mark.parametrize("value", [0.5, 1e300, -1.5, 2.0**53, -(2.0**53), True, None, "1", {}, [1]])
def test_only_whole_numbers_are_integers(dtype, value):
    """Fractions, doubles that may have lost bits, and other kinds are no integers."""
    assert convert(dtype, [1, value]) is None
    assert convert(dtype, [value, 1]) is None


@mark.parametrize("dtype", REAL)
@mark.parametrize("value", [True, None, "1.5", {}, [1.0], [[]]])
def test_only_numbers_are_floats(dtype, value):
    """No boolean, null, string or object is taken for a number."""
    assert convert(dtype, [1.5, value]) is None
    assert convert(dtype, [value, 1.5]) is None


@mark.parametrize("value", [0, 1, 1.0, None, "true", {}, []])
def test_only_booleans_are_booleans(value):
    """No number is taken for a boolean."""
    assert convert("bool", [True, value]) is None


@mark.parametrize(
    ("dtype", "largest", "beyond"),
    [
        ("float16", 65504.0, 65536.0),
        ("bfloat16", 3.3895313892515355e38, 3.5e38),
        ("float32", 3.4028234663852886e38, 3.5e38),
        ("float64", 1.7976931348623157e308, None),
        ("float8_e4m3fn", 448.0, 500.0),
        ("float8_e5m2", 57344.0, 65536.0),
    ],
)
def test_a_number_beyond_a_float_dtype_is_refused(dtype, largest, beyond):
    """The largest number of a float dtype passes; one that would be infinity does not."""
    assert convert(dtype, [largest, -largest]).astype(np.float64).tolist() == [largest, -largest]
    if beyond is not None:
        assert convert(dtype, [beyond]) is None
        assert convert(dtype, [-beyond]) is None


@mark.parametrize("value", [-0.0, 1e-45, 5e-324, 1.1754942e-38])
def test_denormals_and_the_sign_of_zero_survive(value):
    """The smallest numbers are not flushed, and a zero keeps its sign."""
    (got,) = convert("float64", [value]).tolist()
    (narrow,) = convert("float32", [value])

    assert (got, math.copysign(1, got)) == (value, math.copysign(1, value))
    assert narrow == np.float32(value)
    assert np.signbit(narrow) == np.signbit(np.float32(value))


@mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_beside_whole_doubles_keep_every_bit(dtype):
    """One element written as 1.0 does not round the others."""
    array = convert(dtype, [[2**62 + 1, 1.0], [3, 2.0**52]])

    assert array.tolist() == [[2**62 + 1, 1], [3, 2**52]]


@mark.parametrize(
    "values",
    [
        param([[1], [1, 2]], id="lengths"),
        param([[1.0], [1, 2]], id="lengths-of-a-mixture"),
        param([[1], [[1]]], id="depths"),
        param([1, [1]], id="number-and-list"),
        param([[], 1], id="list-and-number"),
    ],
)
@mark.parametrize("dtype", ["float32", "int64"])
def test_lists_of_different_lengths_are_no_array(dtype, values):
    """Ragged lists are refused, never made an array of objects."""
    assert convert(dtype, values) is None
    message = "x: expected {}, got lists of different lengths"
    assert str(refuse(dtype, values, "x")) == message.format(dtype)


def nested(depth, value):
    """Put a value into so many lists."""
    for _ in range(depth):
        value = [value]
    return value


@mark.parametrize("depth", [65, 2000])
def test_more_axes_than_an_array_can_have_are_refused(depth):
    """Lists deeper than NumPy's 64 axes are refused, and those a thousand deep as well."""
    deep = nested(depth, 1.0)

    assert convert("float32", deep) is None
    assert str(refuse("float32", deep, "x")) == f"x: expected float32, got lists {depth} deep"
    assert str(refuse("float32", [1.0, deep], "x")).endswith(f"got lists {depth} deep")


@mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
@mark.parametrize("shape", [(1 << 16,), (256, 256), (1 << 15, 2)])
def test_to_find_the_culprit_takes_no_look_at_each_element(dtype, shape):
    """Among very many elements the last one is found in a few steps of Python."""
    values = np.ones(shape, bool if dtype == "bool" else np.int64).tolist()
    last = values[-1] if len(shape) == 2 else values
    last[-1] = None
    calls = []

    sys.setprofile(lambda _, event, __: calls.append(event) if event == "call" else None)
    try:
        refusal = refuse(dtype, values, "x")
    finally:
        sys.setprofile(None)

    assert str(refusal) == f"x: expected {dtype}, got null"
    assert len(calls) < 1000


def test_whole_doubles_among_many_integers_take_no_look_at_each_element():
    """Integers of which some came as doubles are read in a few steps of Python."""
    values = [2**60 + 1, 1.0] * (1 << 15)
    calls = []

    sys.setprofile(lambda _, event, __: calls.append(event) if event == "call" else None)
    try:
        array = convert("int64", values)
    finally:
        sys.setprofile(None)

    assert array.tolist() == values
    assert len(calls) < 1000


@mark.parametrize(
    ("dtype", "values", "culprit"),
    [
        ("float32", [1, [None]], "null"),
        ("float32", [1, True], "a boolean"),
        ("int8", [1, 128], "128"),
        ("int8", [1, -1.5], "-1.5"),
        ("bool", [True, 1], "a number"),
        ("uint8", {"a": 1}, "an object"),
        ("float32", [10**60], "1000000000000000000000000000000000000000…"),
        ("float64", [10**400], "1000000000000000000000000000000000000000…"),
    ],
)
def test_a_refusal_names_the_first_culprit(dtype, values, culprit):
    """The message has the first element that is not legal, cut to a readable length."""
    assert convert(dtype, values) is None
    assert str(refuse(dtype, values, "x")) == f"x: expected {dtype}, got {culprit}"


ELEMENTS = (
    st.integers(-(2**65), 2**65)
    | st.integers(-300, 300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-300, 300).map(float)
    | st.sampled_from([True, False, None, "1"])
)


@mark.property
@given(st.sampled_from(WHOLE), st.lists(ELEMENTS, min_size=1, max_size=4))
def test_what_is_converted_is_equal_and_what_is_not_has_a_culprit(dtype, values):
    """An integer array equals what was sent, or the message has an element that was."""
    array = convert(dtype, values)

    if array is None:
        shown = [f"got {kind_of(v)}" for v in values] + [f"got {v!r}" for v in values]
        assert str(refuse(dtype, values, "x")).endswith(tuple(shown))
    else:
        assert array.tolist() == values
        assert not any(isinstance(value, bool) for value in values)


@mark.parametrize("dtype", DTYPE_BYTES)
def test_bytes_are_viewed_as_they_are(dtype):
    """Little-endian bytes become a tensor without a copy where they lie aligned."""
    data = bytes(range(2)) * 3 * DTYPE_BYTES[dtype]

    array = from_bytes(dtype, (2, 3), data, "x")

    assert array.dtype == numpy_dtype(dtype)
    assert array.tobytes() == data
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_bytes_that_lie_askew_are_copied():
    """A tensor at an odd address is moved to an even one, where programs can take it."""
    data = memoryview(b"\0" + np.float32([1, 2]).tobytes())[1:]

    array = from_bytes("float32", (2,), data, "x")

    assert array.flags.aligned
    assert array.tolist() == [1.0, 2.0]


def test_non_finite_numbers_pass_as_bytes():
    """NaN and infinity, which JSON lacks, have bytes like other numbers."""
    data = np.float32([np.nan, np.inf]).tobytes()

    assert from_bytes("float32", (2,), data, "x").tobytes() == data


@mark.parametrize("size", [0, 7, 9, 16])
def test_other_lengths_than_the_shape_needs_are_refused(size):
    """The number of bytes has to match the shape."""
    with raises(SignatureMismatch) as caught:
        from_bytes("float32", (2, 1), b"\0" * size, "x")

    assert str(caught.value) == f"x: expected 8 bytes for shape [2, 1], got {size}"


@mark.parametrize("shape", [(2**4, 2**60 + 2), (2**63,), (2**31, 2**31, 2**31)])
def test_shapes_beyond_all_memory_are_compared_not_allocated(shape):
    """The product of sizes is exact, so it cannot overflow into a match."""
    with raises(SignatureMismatch, match="bytes for shape"):
        from_bytes("uint8", shape, b"\0" * 32, "x")


def test_bytes_that_are_no_booleans_are_refused():
    """A boolean is a byte of 0 or 1."""
    assert from_bytes("bool", (2,), b"\0\1", "x").tolist() == [False, True]
    assert from_bytes("bool", (0,), b"", "x").tolist() == []
    with raises(SignatureMismatch) as caught:
        from_bytes("bool", (2,), b"\0\2", "x")
    assert str(caught.value) == "x: expected 0 or 1 in each byte, got another value"
