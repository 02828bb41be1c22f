"""Inputs in other people's notation: refused, with what they mean where that is one thing."""

import jax.numpy as jnp
import numpy as np
import pytest

from export import ExportError, TensorSpec, parse_input
from export.fields import read_field
from export.notation import rewritten

SEVERAL = "an axis of several lengths has a name, and sizes: [_,seq] with --axis seq=32,64"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        *(
            (f"x:float32[{batch},28,28,1]", "the batch is written _: x:float32[_,28,28,1]")
            for batch in ("None", "-1", "?", ":", "*", "B", "N", "b", "bs", "batch", "batch_size")
        ),
        ("x:(None,28,28,1)", "write x:DTYPE[_,28,28,1]"),
        ("(None,28,28,1)", "write NAME:DTYPE[_,28,28,1]"),
        ("float32[_,28]", "write NAME:float32[_,28]"),
        ("x=float32[_,28]", "write x:float32[_,28]"),
        ("x:float32(_,28)", "write x:float32[_,28]"),
        ("x:float32[_,28", "write x:float32[_,28]"),
        ("x:float32[_ 28 28]", "write x:float32[_,28,28]"),
        ("x:(None, 28):float32", "write x:float32[_,28]"),
        ("'x:float32[_,28]'", "write x:float32[_,28]"),
        ("x:torch.float32[_,4]", "write x:float32[_,4]"),
        ("ids:jnp.int32[B,seq]", "write ids:int32[_,seq]"),
        ("x:<f4[_,4]", "write x:float32[_,4]"),
        ("x:f32[_,28]", "did you mean 'float32'?"),
        ("x:FP32[_,28]", "did you mean 'float32'?"),
        ("x:TYPE_INT64[_,28]", "did you mean 'int64'?"),
        ("x:bf16[_,28]", "did you mean 'bfloat16'?"),
        ("x:long[_,28]", "did you mean 'int64'?"),
        ("x:float[_,4]", "did you mean 'float32'?"),
        ("x:f32[B,28]", "write x:float32[_,28]"),
        ("x:i8[_,4]", "i8 is int8 to XLA and int64 to NumPy"),
        ("x:f8[_,4]", "f8 is an 8-bit float to XLA and float64 to NumPy"),
        ("x:float32[_,None]", SEVERAL),
        ("x:float32[_,-1]", SEVERAL),
        ("x:float32[_,_]", SEVERAL),
        ("x:float32[...]", "write every size out"),
        ("x:float32[B,…]", "write every size out"),
        ("x:float32[1,28]", "the batch comes first, and is written _"),
        ("x:float32[seq,28]", "the batch comes first, and is written _"),
    ],
)
def test_what_is_meant_is_advised(text, advice):
    """The batch, brackets, other libraries' dtypes and open sizes are answered with what to write."""
    with pytest.raises(ExportError) as caught:
        parse_input(text)

    assert str(caught.value).partition("; ")[2] == advice


@pytest.mark.parametrize(
    "text",
    [
        *("x:float32", "x:str[_,3]", "x", "", "x:complex64[_,3]", "x:float32[28,28]"),
        *("x:float32[_x28x28]", "x:float32[_,...]", "x:float32[seq,28]", "x:float32[_,None]"),
    ],
)
def test_what_could_mean_several_things_is_not_rewritten(text):
    """A size may be that of a fixed batch or of a row: only what is sure is written for the user."""
    assert rewritten(text) in ("", "x:DTYPE[_,3]")


@pytest.mark.parametrize("dtype", [np.float32, np.dtype("float32"), jnp.float32, "float32"])
def test_a_tensor_spec_takes_dtypes_of_numpy_and_jax(dtype):
    """A dtype that is an object of NumPy's or JAX's is taken by its name."""
    (spec,) = read_field("inputs", [TensorSpec(name="x", dtype=dtype, shape=("_", 3))])

    assert spec == TensorSpec(name="x", dtype="float32", shape=("_", 3))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((None, 28), "got 'None'; the batch is written _"),
        ((-1, 28), "got -1; the batch is written _"),
        (("batch", 28), "got 'batch'; the batch is written _"),
        (("_", None), f"got 'None'; {SEVERAL}"),
        (("_", 2.5), "got '2.5'"),
    ],
)
def test_a_tensor_spec_in_another_notation_is_advised_too(shape, message):
    """Keras's None and NumPy's -1 in a TensorSpec are answered as in text."""
    with pytest.raises(ExportError) as caught:
        read_field("inputs", [TensorSpec(name="x", dtype="float32", shape=shape)])

    assert str(caught.value) == (
        "input 'x': expected [_, …] with sizes or axis names after the batch, " + message
    )
