"""Failures of a model beside the shapes it got, and notes on what its trace shows."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

W = {"w": np.ones((4, 3), np.float32)}
ASKED = ": are the axes, sizes and dtype those that it was trained on?"


class Pooled(linen.Module):
    """A convolution that is pooled, as of every tutorial."""

    @linen.compact
    def __call__(self, x):
        """Take images."""
        x = linen.avg_pool(linen.Conv(2, (3, 3))(x), (2, 2), (2, 2))
        return linen.Dense(3)(x.reshape((x.shape[0], -1)))


POOLED = {
    "Conv_0": {"kernel": np.ones((3, 3, 1, 2), np.float32), "bias": np.zeros(2, np.float32)},
    "Dense_0": {"kernel": np.ones((8, 3), np.float32), "bias": np.zeros(3, np.float32)},
}


def divides(params, x):
    """Divide by the number of its pixels, of which there are none."""
    return x @ params["w"] / (28 // (x.ndim - 2))


def asserts(params, x):
    """Expect images."""
    assert x.ndim == 4
    return x @ params["w"]


def unpacks(params, x):
    """Expect three axes."""
    batch, height, width = x.shape
    return x.reshape(batch, height * width) @ params["w"]


@pytest.mark.parametrize(
    ("model", "params", "kernels"),
    [
        (divides, W, "w float32[4, 3]"),
        (asserts, W, "w float32[4, 3]"),
        (unpacks, W, "w float32[4, 3]"),
        (lambda p, x: x[:, :, 0] @ p["w"], W, "w float32[4, 3]"),
        (lambda p, x: x[:, :3] @ p["w"], W, "w float32[4, 3]"),
        (
            Pooled(),
            POOLED,
            "Conv_0/kernel float32[3, 3, 1, 2], Dense_0/kernel float32[8, 3]",
        ),
    ],
    ids=["division", "assertion", "unpacking", "index", "product", "linen"],
)
def test_an_error_of_shapes_names_inputs_and_params(refusal, model, params, kernels):
    """Whatever a wrong number of axes makes the model raise, what it got and has is beside it."""
    message = refusal(model, params, inputs=["x:float32[_,4]"])

    assert message.startswith("the model cannot be traced: ")
    assert message.endswith(f"; it got x: float32[_, 4], and the params are {kernels}{ASKED}")


def test_an_nnx_module_is_looked_at_likewise(refusal):
    """A module that holds its weights shows their shapes as a checkpoint does."""
    message = refusal(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), inputs=["x:float32[_,5]"])

    assert message.endswith(
        f"; it got x: float32[_, 5], and the params are kernel float32[4, 3]{ASKED}"
    )


@pytest.mark.parametrize(
    "model",
    [
        lambda p, _x: p["nothing"],
        lambda p, x: x @ p["w"] if x.sum() > 0 else x,
        lambda _p, x: x.no_such_method(),
    ],
    ids=["name", "value", "attribute"],
)
def test_an_error_of_something_else_does_not_blame_shapes(refusal, model):
    """A missing name, a branch on values and a wrong call are reported as they are."""
    assert "it got" not in refusal(model, W, inputs=["x:float32[_,4]"])


@pytest.mark.parametrize(
    "model",
    [
        lambda p, x: x.astype(jnp.float32) @ p["w"],
        lambda p, x: (x / 255) @ p["w"],
        lambda p, x: x @ p["w"],
        lambda p, x: x.reshape((-1, 4)).astype(jnp.float32) @ p["w"],
        lambda p, x: jnp.concatenate([x / 2, jnp.sqrt(x)], -1)[:, :4] @ p["w"],
    ],
    ids=["cast", "scaled", "product", "moved", "twice"],
)
def test_integers_that_become_floats_at_once_are_noted(plan, model):
    """An input that was declared of integers by mistake is named, with what to declare."""
    assert plan(model, W, inputs=["x:int32[_,4]"]).notes == (
        (
            "input 'x' is int32, and the model makes it float32 at once: as it is declared, 1.5 is "
            "refused; if values may have fractions, declare x:float32[_,4]"
        ),
    )


@pytest.mark.parametrize(
    ("model", "declared"),
    [
        (lambda p, x: p["w"][x].sum(1), "x:int32[_,4]"),
        (lambda p, x: jnp.where(x > 0, 1.0, 0.0) @ p["w"], "x:int32[_,4]"),
        (lambda p, x: (x // 2).astype(jnp.float32) @ p["w"], "x:int32[_,4]"),
        (lambda p, x: {"y": x / 2 @ p["w"], "x": x}, "x:int32[_,4]"),
        (lambda p, x: (x / 255) @ p["w"], "x:uint8[_,4]"),
        (lambda p, x: x @ p["w"], "x:float32[_,4]"),
    ],
    ids=["index", "compared", "divided", "passed on", "pixels", "floats"],
)
def test_integers_that_are_meant_are_not_noted(plan, model, declared):
    """Ids, comparisons, integer arithmetic and pixels are integers for good reason."""
    assert plan(model, W, inputs=[declared]).notes == ()


def test_a_declared_range_says_that_integers_are_meant(command, folder):
    """An input with declared legal values is not suspected of the wrong dtype."""
    words = ("models.py:affine", "--params", "affine.safetensors", "--input", "x:int32[_,3]")
    run = (
        "--buckets",
        "1",
        "--platforms",
        "cpu",
        "--out",
        str(folder / "b"),
        "--dry-run",
        "--json",
    )

    assert len(command(*words, *run).json["notes"]) == 1
    assert command(*words, "--range", "x=0:9", *run).json["notes"] == []


def test_several_inputs_of_a_model_of_one_argument_are_explained(refusal):
    """For a model that uses its dict of inputs as an array, the message explains that it got a dict."""
    message = refusal(divides, {"w": W["w"]}, inputs=["x:float32[_,4]", "y:float32[_,4]"])

    assert message.startswith("the model cannot be traced: TypeError: unsupported operand type")
    assert message.endswith(
        "; a model of one argument gets several inputs as a dict: expected one input, or a model that "
        "takes them by name, got x, y"
    )
