"""Tensors as they are written, counted and bounded; and the package's own names."""

import numpy as np
from pytest import mark, raises

import runtime
from runtime.signature import (
    DTYPE_BYTES,
    Axis,
    Signature,
    TensorSpec,
    bucket_name,
    limits,
    notation,
)
from runtime.tensors import numpy_dtype

SPEC = TensorSpec(name="x", dtype="bfloat16", shape=("_", 28, "seq"))


def test_tensors_are_written_in_one_notation():
    """
    Every message and page writes a tensor the same way.
    """
    assert str(SPEC) == "bfloat16[_, 28, seq]"
    assert notation("float32", ()) == "float32[]"


def test_shape_becomes_concrete():
    """
    The batch and named axes get their sizes.
    """
    assert SPEC.concrete(3, {"seq": 7}) == (3, 28, 7)


def test_row_has_its_bytes():
    """
    A row's bytes follow from dtype, sizes and the sizes of the axes.
    """
    assert SPEC.row_bytes({"seq": 7}) == 2 * 28 * 7


@mark.parametrize("dtype", [d for d in sorted(DTYPE_BYTES) if "int" in d])
def test_limits_are_those_of_numpy(dtype):
    """
    The reader, which has no NumPy, has the same smallest and largest integers.
    """
    info = np.iinfo(numpy_dtype(dtype))

    assert limits(dtype) == (info.min, info.max)


def test_floats_have_no_limits():
    """
    A bool is 0 or 1, and a float may be anything.
    """
    assert limits("bool") == (0, 1)
    assert limits("float8_e5m2") == (-np.inf, np.inf)


def test_bucket_has_a_name_that_cannot_draw():
    """
    A program is named by its batch and axes, whatever they are called.
    """
    axes = (Axis(name="seq", sizes=(4,)), Axis(name="\x1b[2J\n", sizes=(2,)))
    signature = Signature(inputs=(SPEC,), outputs=(SPEC,), axes=axes)

    assert bucket_name(signature, (4, 2), 8) == "b8-seq4-\\x1b[2J\\n2"


def test_public_names_are_found_where_they_live():
    """
    Every name that the package promises can be had from it.
    """
    assert dir(runtime) == sorted(runtime.__all__)
    assert all(getattr(runtime, name).__name__ == name for name in runtime.__all__)


def test_unknown_name_is_an_attribute_error():
    """
    A misspelt name fails as it does in any module.
    """
    with raises(AttributeError, match=r"^module 'runtime' has no attribute 'lode'$"):
        runtime.lode  # noqa: B018 (looked up for its error)
