"""What `predict` takes from Python programs beside arrays of exactly the right dtype."""

import jax.numpy as jnp
import numpy as np
from pytest import mark, param, raises

from runtime.errors import InvalidInput
from runtime.records.arguments import exact_arrays
from runtime.signature import Signature, TensorSpec


def read(dtype, value):
    """Read one input of a dtype, `[_, 2]`."""
    spec = TensorSpec(name="x", dtype=dtype, shape=("_", 2))
    return exact_arrays(Signature(inputs=(spec,), outputs=(), axes=()), {"x": value})["x"]


@mark.parametrize("dtype", ["int8", "int32", "int64", "float32", "float64", "bfloat16"])
@mark.parametrize("value", [[[1, 2], [3, 4]], [(1, 2), (3, 4)], ((1, 2), [3, 4])])
def test_nested_lists_become_arrays_of_the_dtype(dtype, value):
    """Numbers in lists or tuples are taken as the input's dtype."""
    array = read(dtype, value)

    assert (array.dtype.name, array.tolist()) == (dtype, [[1, 2], [3, 4]])


@mark.parametrize(
    ("dtype", "value", "got"),
    [
        ("int32", [[1, 1.5]], "1.5"),
        ("int32", [[1, True]], "a boolean"),
        ("float32", [[1.0, None]], "null"),
        ("float32", [["1", 2]], "a string"),
        ("int8", [[1, 300]], "300"),
        ("float32", [[1, 2], [3]], "lists of different lengths"),
    ],
)
def test_elements_of_lists_are_never_coerced(dtype, value, got):
    """What JSON would be refused for is refused in a list as well."""
    with raises(InvalidInput) as caught:
        read(dtype, value)

    assert str(caught.value) == f"input 'x': expected {dtype}, got {got}"


@mark.parametrize("rows", [np.int64([[1, 2]]), [np.int64([1, 2])], [[np.int64(1), np.int64(2)]]])
@mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64"])
def test_int64_is_taken_where_every_value_fits(rows, dtype):
    """NumPy makes int64 of integers; a narrower input has them if none is changed by that."""
    array = read(dtype, rows)

    assert (array.dtype.name, array.tolist()) == (dtype, [[1, 2]])


@mark.parametrize(("dtype", "value"), [("int32", 2**31), ("int32", -(2**31) - 1), ("uint8", -1)])
def test_int64_that_does_not_fit_names_the_value(dtype, value):
    """One value beyond the input's dtype is an error that names it."""
    with raises(InvalidInput) as caught:
        read(dtype, np.int64([[1, value]]))

    assert str(caught.value) == f"input 'x': expected values of {dtype}, got {value}"


@mark.parametrize(
    ("dtype", "value"),
    [
        param("float32", np.zeros((1, 2)), id="float64"),
        param("int64", np.zeros((1, 2), np.int32), id="wider"),
        param("float32", np.zeros((1, 2), np.int64), id="int64 for floats"),
        param("int32", np.zeros((1, 2), np.float32), id="floats for integers"),
        param("bool", np.zeros((1, 2), np.int64), id="int64 for booleans"),
        param("float32", jnp.zeros((1, 2)), id="jax"),
        param("float32", "text", id="text"),
    ],
)
def test_all_else_is_left_for_the_checker(dtype, value):
    """Other dtypes are never cast, and what is no list is passed on."""
    assert read(dtype, value) is value
