"""What callers send, compared with the signature: nothing is converted, messages say what to do."""

import dataclasses

import ml_dtypes
import numpy as np
from pytest import mark, param, raises

from runtime.errors import SignatureMismatch
from runtime.inputs import Checker
from runtime.signature import Axis, Signature, TensorSpec

IDS = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=9)
MASK = TensorSpec(name="mask", dtype="bool", shape=("_", "seq"), mask=True)
IMAGE = TensorSpec(name="image", dtype="float32", shape=("_", 2, 2, 1))
SIGNATURE = Signature(inputs=(IDS, MASK, IMAGE), outputs=(), axes=(Axis(name="seq", sizes=(4, 8)),))


def legal(**changes):
    """Make two legal rows of five tokens, with some inputs replaced or, if None, left out."""
    inputs = {
        "ids": np.zeros((2, 5), np.int32),
        "mask": np.ones((2, 5), np.bool_),
        "image": np.zeros((2, 2, 2, 1), np.float32),
    }
    return {name: value for name, value in (inputs | changes).items() if value is not None}


def refusal(inputs):
    """Check inputs that must be refused; return the message."""
    with raises(SignatureMismatch) as caught:
        Checker(SIGNATURE).check(inputs)
    return str(caught.value)


def test_legal_inputs_pass_as_they_are():
    """
    Valid arrays are returned in the signature's order, the same objects, with their sizes.
    """
    inputs = legal()

    checked = Checker(SIGNATURE).check(dict(reversed(inputs.items())))

    assert (checked.rows, checked.sizes) == (2, (5,))
    assert all(a is b for a, b in zip(checked.arrays, inputs.values(), strict=True))


@mark.parametrize("inputs", [legal(mask=None), legal() | {"mask": None}])
def test_mask_may_be_left_out(inputs):
    """
    A mask that is absent or None stays None, to be made when the bucket is known.
    """
    assert Checker(SIGNATURE).check(inputs).arrays[1] is None


def test_no_rows_are_legal():
    """
    Zero rows fit every signature.
    """
    checked = Checker(SIGNATURE).check(
        {"ids": np.zeros((0, 4), np.int32), "image": np.zeros((0, 2, 2, 1), np.float32)}
    )

    assert checked.rows == 0


@mark.parametrize(
    ("inputs", "message"),
    [
        param(
            legal(extra=np.zeros(1)),
            "inputs: expected ['ids', 'image', 'mask'], got 'extra' as well",
            id="unknown-name",
        ),
        param(
            legal(image=None, img=1, pic=2),
            "inputs: expected ['ids', 'image', 'mask'], got 'img', 'pic' and no 'image'; did you mean 'image'?",
            id="misspelt-name",
        ),
        param(
            legal(image=None),
            "input 'image': expected float32[_, 2, 2, 1], got nothing",
            id="missing",
        ),
        param({}, "input 'ids': expected int32[_, seq], got nothing", id="nothing"),
        param(
            legal(image=np.zeros((2, 2, 2, 1))),
            "input 'image': expected float32[_, 2, 2, 1], got float64[2, 2, 2, 1]",
            id="wider-dtype",
        ),
        param(
            legal(image=np.zeros((2, 2, 2, 1), ml_dtypes.bfloat16)),
            "input 'image': expected float32[_, 2, 2, 1], got bfloat16[2, 2, 2, 1]",
            id="bfloat16",
        ),
        param(
            legal(image=np.zeros((2, 2, 2, 1), ">f4")),
            "input 'image': expected float32[_, 2, 2, 1], got byte-swapped float32[2, 2, 2, 1]",
            id="byte-swapped",
        ),
        param(
            legal(ids=np.zeros((2, 5), np.uint32)),
            "input 'ids': expected int32[_, seq], got uint32[2, 5]",
            id="unsigned",
        ),
        param(
            legal(mask=np.ones((2, 5), np.int8)),
            "input 'mask': expected bool[_, seq], got int8[2, 5]",
            id="mask-of-integers",
        ),
        param(
            legal(ids=np.array([["a", "b"], ["c", "d"]])),
            "input 'ids': expected int32[_, seq], got str32[2, 2]",
            id="strings",
        ),
        param(
            legal(ids=np.array([[None], [None]])),
            "input 'ids': expected int32[_, seq], got object[2, 1]",
            id="objects",
        ),
        param(
            legal(ids=[[1, 2], [3]]),
            "input 'ids': expected int32[_, seq], got a list that is no array",
            id="ragged-list",
        ),
        param(
            legal(image=np.float32(1)),
            "input 'image': expected float32[_, 2, 2, 1], got float32[]",
            id="scalar",
        ),
        param(
            legal(image=np.zeros((2, 2, 1), np.float32)),
            "input 'image': expected float32[_, 2, 2, 1], got float32[2, 2, 1]",
            id="row-without-batch",
        ),
        param(
            legal(image=np.zeros((2, 2, 3, 1), np.float32)),
            "input 'image': expected float32[_, 2, 2, 1], got float32[2, 2, 3, 1]",
            id="wrong-size",
        ),
        param(
            legal(image=np.zeros((3, 2, 2, 1), np.float32)),
            "input 'image': expected float32[_, 2, 2, 1] with _=2 as in the inputs before it, "
            "got float32[3, 2, 2, 1]",
            id="other-rows",
        ),
        param(
            legal(mask=np.ones((2, 4), np.bool_)),
            "input 'mask': expected bool[_, seq] with seq=5 as in the inputs before it, "
            "got bool[2, 4]",
            id="other-length",
        ),
        param(
            legal(ids=np.zeros((2, 9), np.int32), mask=None),
            "axis 'seq': expected at most 8, got 9",
            id="too-long",
        ),
        param(
            legal(ids=np.full((2, 5), 10, np.int32)),
            "input 'ids': expected values <= 9, got 10",
            id="above-the-range",
        ),
        param(
            legal(ids=np.array([[0] * 5, [0, 0, -1, 0, 0]], np.int32)),
            "input 'ids': expected values >= 0, got -1",
            id="below-the-range",
        ),
    ],
)
def test_what_does_not_fit_is_said(inputs, message):
    """
    The first thing that does not fit is named in the project's notation, with what came.
    """
    assert refusal(inputs) == message


@mark.parametrize("dtype", ["int64", "uint64"])
def test_ranges_are_exact_for_64_bits(dtype):
    """
    A bound beyond 2**53 is compared as an integer, not as a float that rounds it.
    """
    bound = 2**62 + 1
    spec = TensorSpec(name="x", dtype=dtype, shape=("_",), maximum=bound)
    signature = Signature(inputs=(spec,), outputs=())

    Checker(signature).check({"x": np.array([bound], dtype)})
    with raises(SignatureMismatch) as caught:
        Checker(signature).check({"x": np.array([bound + 1], dtype)})

    assert str(caught.value) == f"input 'x': expected values <= {bound}, got {bound + 1}"


def test_empty_inputs_are_in_every_range():
    """
    No values are out of no range.
    """
    Checker(SIGNATURE).check({name: array[:0] for name, array in legal().items()})


LENGTHS = TensorSpec(name="lengths", dtype="int32", shape=("_",), minimum=1, maximum="seq")


@mark.parametrize("first", ["lengths", "ids"])
@mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 5], None),
        ([5, 6], "input 'lengths': expected values <= 5, the size of axis 'seq', got 6"),
        ([0, 5], "input 'lengths': expected values >= 1, got 0"),
    ],
)
def test_a_length_is_no_more_than_its_rows_have(first, lengths, message):
    """
    A maximum that is an axis means the size that this request has on it, whichever comes first.
    """
    inputs = (LENGTHS, IDS) if first == "lengths" else (IDS, LENGTHS)
    checker = Checker(dataclasses.replace(SIGNATURE, inputs=inputs))
    given = {"ids": np.zeros((2, 5), np.int32), "lengths": np.array(lengths, np.int32)}

    if message is None:
        assert checker.check(given).sizes == (5,)
        return
    with raises(SignatureMismatch) as caught:
        checker.check(given)
    assert str(caught.value) == message
