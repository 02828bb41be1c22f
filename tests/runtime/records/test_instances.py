"""Vertex AI's instances, typed by the signature and never coerced."""

import types

import numpy as np
from pytest import mark, param, raises

from runtime.errors import InvalidInput
from runtime.inputs import Checker
from runtime.records.instances import read_rows
from runtime.signature import Axis, Signature, TensorSpec

OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=("_",)),)


def signature(*inputs, axes=()):
    """Make a signature of these inputs."""
    return Signature(inputs=inputs, outputs=OUTPUTS, axes=axes)


def parts_of(instances, signature):
    """Read instances, for a model of this signature, into its arrays by name: part by part."""
    model = types.SimpleNamespace(signature=signature, checker=Checker(signature), preparer=None)
    names = [spec.name for spec in signature.inputs]
    return [dict(zip(names, part.arrays, strict=True)) for part in read_rows(instances, model)]


def arrays_of(instances, signature):
    """Read instances that make one part."""
    (arrays,) = parts_of(instances, signature)
    return arrays


def tensor(name="x", dtype="float32", shape=("_", 2), **more):
    """Make an input."""
    return TensorSpec(name=name, dtype=dtype, shape=shape, **more)


SEQ = Axis(name="seq", sizes=(4, 8))
IDS = tensor("ids", "int32", ("_", "seq"), pad=7)
MASK = tensor("mask", "int32", ("_", "seq"), mask=True)


def test_rows_of_the_only_input_stand_alone():
    """Where there is one input an instance is its row."""
    arrays = arrays_of([[1, 2.5], [3, 4]], signature(tensor()))

    assert arrays["x"].dtype == np.float32
    assert arrays["x"].tolist() == [[1.0, 2.5], [3.0, 4.0]]


def test_rows_by_name_read_the_same():
    """An instance may name its inputs, with one input and with several."""
    one = arrays_of([{"x": [1, 2]}], signature(tensor()))
    two = arrays_of([{"x": [1, 2], "k": 3}], signature(tensor(), tensor("k", "int8", ("_",))))

    assert one["x"].tolist() == [[1.0, 2.0]]
    assert two["k"].tolist() == [3]
    assert two["k"].dtype == np.int8


@mark.parametrize("rows", [1, 3])
def test_scalars_are_rows_of_a_vector_input(rows):
    """An input without axes of its own takes numbers."""
    arrays = arrays_of([5] * rows, signature(tensor(shape=("_",))))

    assert arrays["x"].shape == (rows,)


def test_no_instances_are_no_rows():
    """An empty list becomes arrays of no rows, of the right dtype and shape."""
    arrays = arrays_of([], signature(tensor(), tensor("k", "int8", ("_",))))

    assert arrays["x"].shape == (0, 2)
    assert arrays["k"].dtype == np.int8


def test_whole_doubles_pass_for_integers():
    """Integers arrive through gRPC as doubles, so 1.0 is a legal integer; 1.5 is not."""
    arrays = arrays_of([[1.0, -2]], signature(tensor(dtype="int16")))

    assert arrays["x"].tolist() == [[1, -2]]


def test_large_integers_keep_every_bit():
    """An integer beyond 2**53 that was written as one arrives exactly."""
    arrays = arrays_of([[2**62 + 1, 0]], signature(tensor(dtype="int64")))

    assert arrays["x"].tolist() == [[2**62 + 1, 0]]


def test_unsigned_integers_use_their_whole_range():
    """uint64 takes 2**64 - 1."""
    arrays = arrays_of([[2**64 - 1, 0]], signature(tensor(dtype="uint64")))

    assert arrays["x"].tolist() == [[2**64 - 1, 0]]


@mark.parametrize(
    ("dtype", "instances", "message"),
    [
        param("float32", [[1, None]], "instances[0]: input 'x': expected float32, got null", id="null"),
        param("float32", [[1, 2], [1, "2"]], "instances[1]: input 'x': expected float32, got a string", id="string"),
        param("float32", [[1, True]], "instances[0]: input 'x': expected float32, got a boolean", id="bool-in-float"),
        param("float32", [[True, False]], "instances[0]: input 'x': expected float32, got a boolean", id="bools-in-float"),
        param("int32", [[True, False]], "instances[0]: input 'x': expected int32, got a boolean", id="bools-in-int"),
        param("bool", [[1, 0]], "instances[0]: input 'x': expected bool, got a number", id="numbers-in-bool"),
        param("int32", [[1, 1.9]], "instances[0]: input 'x': expected int32, got 1.9", id="fraction"),
        param("int32", [[1, 2**40]], "instances[0]: input 'x': expected int32, got 1099511627776", id="range"),
        param("uint8", [[1, 2], [1, -1]], "instances[1]: input 'x': expected uint8, got -1", id="negative"),
        param("int64", [[1, 9007199254740993.0]], "instances[0]: input 'x': expected int64, got 9007199254740992.0", id="double-that-lost-a-bit"),
        param("int64", [[1, 2.0**60]], "instances[0]: input 'x': expected int64, got 1.152921504606847e+18", id="double-too-large"),
        param("float32", [[1, 1e300]], "instances[0]: input 'x': expected float32, got 1e+300", id="overflow"),
        param("float32", [[1, 2, 3]], "instances[0]: input 'x': expected float32[2], got [3]", id="length"),
        param("float32", [[1, 2], [[1], [2]]], "instances[1]: input 'x': expected float32[2], got [2, 1]", id="depth"),
        param("float32", [[1, [2]]], "instances[0]: input 'x': expected float32, got lists of different lengths", id="ragged"),
        param("float32", [7], "instances[0]: input 'x': expected float32[2], got []", id="scalar"),
        param("float32", [[1, {}]], "instances[0]: input 'x': expected float32, got an object", id="object"),
        param("float32", [{"y": [1, 2]}], "instances[0]: expected 'x', got 'y'", id="unknown-name"),
        param("float32", [{}], "instances[0]: expected 'x', got none", id="missing-name"),
        param("float32", [{"x": [1, 2]}, [1, 2]], "instances[1]: expected an object like the others, got an array", id="mixed"),
    ],
)  # fmt: skip
def test_nothing_is_coerced(dtype, instances, message):
    """A value that is not of the tensor's kind is an error that names its place."""
    with raises(InvalidInput) as caught:
        arrays_of(instances, signature(tensor(dtype=dtype)))

    assert str(caught.value) == message


def test_a_row_without_names_has_all_inputs():
    """A bare row of several inputs is an array of these, in their order, and no input's value."""
    with raises(InvalidInput) as caught:
        arrays_of([[1, 2]], signature(tensor(), tensor("k", "int8", ("_",))))

    assert str(caught.value) == "instances[0]: input 'x': expected float32[2], got []"


def test_rows_of_different_lengths_are_parts_of_their_own():
    """Each row stays as long as it is: none is padded to the longest of its request."""
    instances = [{"ids": [1, 2, 3]}, {"ids": [4]}]

    parts = parts_of(instances, signature(IDS, MASK, axes=(SEQ,)))

    assert [part["ids"].tolist() for part in parts] == [[[1, 2, 3]], [[4]]]
    assert [part["mask"] for part in parts] == [None, None]


def test_rows_of_one_length_are_one_part():
    """Rows that need no padding stay together, and a mask may be left out of all."""
    arrays = arrays_of([[1, 2], [3, 4]], signature(IDS, MASK, axes=(SEQ,)))

    assert arrays["ids"].tolist() == [[1, 2], [3, 4]]
    assert arrays["mask"] is None


def test_a_mask_that_is_given_is_kept():
    """A caller's own mask is passed on."""
    instances = [{"ids": [1, 2, 3], "mask": [1, 0, 1]}, {"ids": [4], "mask": [1]}]

    parts = parts_of(instances, signature(IDS, MASK, axes=(SEQ,)))

    assert [part["mask"].tolist() for part in parts] == [[[1, 0, 1]], [[1]]]


def test_a_mask_in_some_instances_only_is_refused():
    """A mask is given for every instance or for none."""
    instances = [{"ids": [1], "mask": [1]}, {"ids": [4]}]

    with raises(InvalidInput) as caught:
        arrays_of(instances, signature(IDS, MASK, axes=(SEQ,)))

    assert str(caught.value) == "instances[1]: expected 'mask' as in others, got none"


def test_inputs_of_one_row_agree_on_their_axis():
    """A mask of another length than its row is refused."""
    with raises(InvalidInput) as caught:
        arrays_of([{"ids": [1, 2], "mask": [1]}], signature(IDS, MASK, axes=(SEQ,)))

    assert str(caught.value) == (
        "instances[0]: input 'mask': expected int32[_, seq] with seq=2 as in the inputs before it, "
        "got int32[1, 1]"
    )
