"""What is wrong with params is said of the params, before inputs or goldens are suspected."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training import train_state

from export import ParamsError
from export.misfits import relation

W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.float32([10, 20])
DENSE = {"params": {"kernel": W, "bias": B}}
UNREPLICATE = (
    "take the first of each, jax.tree.map(lambda a: a[0], params), which is "
    "flax.jax_utils.unreplicate"
)


def affine(params, x):
    """A stand-in for any function of params."""
    return x @ params["kernel"] + params["bias"]


def copies(tree, count=8):
    """Return params as `flax.jax_utils.replicate` leaves them on that many devices."""
    return jax.tree.map(lambda a: np.stack([a] * count), tree)


class Normed(linen.Module):
    """Has statistics."""

    @linen.compact
    def __call__(self, x, train: bool = False):
        return linen.BatchNorm(use_running_average=not train)(linen.Dense(2)(x))


def test_replicated_params_of_a_module_are_named(refusal):
    """An additional leading axis of equal values on every param is recognized as pmap's; its size is reported."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    for module, tree, prefix in (
        (linen.Dense(2), copies(DENSE), "params/"),
        (model, copies(DENSE["params"]), ""),
    ):
        assert refusal(module, tree, kind=ParamsError) == (
            "params: replicated over devices: each has the same extra leading axis of 8, equal values "
            f"along it ({prefix}bias is float32[8, 2], of the model float32[2]), as pmap's state has; "
            f"{UNREPLICATE}"
        )


@pytest.mark.parametrize("count", [1, 2, 8])
def test_replicated_params_of_a_function_are_named(refusal, count):
    """A function shows it too, if it returns a row for each row once it has the first of each param alone."""
    assert refusal(affine, copies(DENSE["params"], count), kind=ParamsError) == (
        f"params: replicated over devices: each has the same extra leading axis of {count}, equal "
        f"values along it (bias is float32[{count}, 2]), as pmap's state has; {UNREPLICATE}"
    )


def test_params_of_equal_rows_are_no_replicas(plan):
    """A function that takes such params as they are keeps them."""
    made = plan(
        lambda p, x: x @ p["w"] + p["b"].sum(), {"w": np.ones((3, 2), "f4"), "b": np.ones(3)}
    )
    np.testing.assert_allclose(made.goldens[0][2][0][:, 0], made.goldens[0][1][0].sum(1) + 3, 1e-5)


def test_statistics_that_differ_between_devices_are_averaged_first(refusal):
    """To take the first of those would be wrong, and is not advised."""
    variables = copies(Normed().init(jax.random.key(0), np.ones((2, 3))), 2)
    variables["batch_stats"] = jax.tree.map(
        lambda a: a + np.float32([[0], [1]]), variables["batch_stats"]
    )
    assert refusal(Normed(), variables, kind=ParamsError) == (
        "params: replicated over devices: each has the same extra leading axis of 2 "
        "(batch_stats/BatchNorm_0/mean is float32[2, 2], of the model float32[2]), as pmap's state "
        "has, and those of batch_stats differ along it: average these over it, a.mean(0), then "
        f"{UNREPLICATE}"
    )


def test_an_ensemble_is_not_taken_for_replicas(refusal):
    """Where values differ along the axis, the message does not suggest the first of them."""
    members = jax.tree.map(lambda a: np.stack([a, a + 1]), DENSE)
    assert refusal(linen.Dense(2), members, kind=ParamsError) == (
        "params: each has the same extra leading axis of 2 and other values along it (params/bias is "
        "float32[2, 2], of the model float32[2]): an ensemble, layers of a scan, or devices that went "
        "apart; pass the one that is meant, or a model with that axis"
    )


def test_params_that_are_not_finite_are_named(refusal):
    """NaN in the weights are counted and named, and the message does not suggest other inputs."""
    kernel = W.copy()
    kernel[0, 1] = np.nan
    bias = np.float32([np.inf, 0])
    for model, tree, prefix in (
        (linen.Dense(2), {"params": {"kernel": kernel, "bias": bias}}, "params/"),
        (affine, {"kernel": kernel, "bias": bias}, ""),
    ):
        assert refusal(model, tree, kind=ParamsError) == (
            f"params: expected finite values, got 1 infinite of 2 in '{prefix}bias', 1 NaN of 6 in "
            f"'{prefix}kernel'; so 8 of 8 values of output 'output' are not finite either (the "
            "un-exported model, op by op)"
        )


def test_a_mask_of_infinities_among_the_params_may_be_meant(refusal, plan):
    """Infinite params are named, and so is the option for a mask; with it the model is exported."""
    params = {**DENSE["params"], "mask": np.float32([-np.inf, 0])}

    def masked(params, x):
        return affine(params, x) + params["mask"]

    assert refusal(masked, params, kind=ParamsError) == (
        "params: expected finite values, got 1 infinite of 2 in 'mask'; so 4 of 8 values of output "
        "'output' are not finite either (the un-exported model, op by op); where the model means it, "
        "as for masked logits or suppressed tokens, pass --allow-infinite output"
    )
    assert np.isneginf(plan(masked, params, allow_infinite=["output"]).goldens[0][2][0][:, 0]).all()


def test_a_matrix_of_one_value_is_no_replica(refusal):
    """Rows of ones are alike without any device: what does not fit is the shape."""
    message = refusal(lambda p, x: x[:, :2] @ p["w"], {"w": np.ones((3, 2), np.float32)})
    assert message.startswith("the model cannot be traced: TypeError: dot_general requires")
    kernels = {"kernel": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}
    assert refusal(affine, copies(kernels), kind=ParamsError).startswith(
        "params: replicated over devices: each has the same extra leading axis of 8, equal values"
    )


def test_nan_that_no_golden_meets_are_noted(plan):
    """A table with a row of NaN is exported, and the report notes it."""

    def rarely(params, x):
        return jnp.where(x[:, :1] > 1e9, params["rare"], affine(params, x))

    made = plan(rarely, {**DENSE["params"], "rare": np.full(2, np.nan, np.float32)})
    assert made.notes == ("the params hold values that are not finite: 2 NaN of 2 in 'rare'",)


def test_values_that_casting_loses_are_named(refusal):
    """What float16 cannot hold is blamed on the cast, not on training."""
    params = {"kernel": np.full((3, 2), 1e6, np.float32), "bias": B}
    message = refusal(affine, params, dtype="float16", kind=ParamsError)
    assert message.startswith(
        "params: expected values that float16 can hold, got 6 infinite of 6 in 'kernel' once cast to "
        "it; cast to bfloat16, or leave them as they are; so "
    )


STATE = train_state.TrainState.create(
    apply_fn=linen.Dense(2).apply, params=DENSE["params"], tx=optax.adam(1e-3)
)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"model": STATE, "config": {"a": 1}},
            "got config, model; the model's are under model: pass ",
        ),
        ({"a": {"b": DENSE}}, "got a; the model's are under a/b: pass --params-path a/b"),
        ({"ema": DENSE["params"], "opt": STATE.opt_state}, "are under ema: pass --params-path ema"),
        (
            {"teacher": DENSE, "student": DENSE["params"]},
            "are under student, teacher: pass the one that is meant with --params-path",
        ),
    ],
)
def test_the_part_that_has_the_params_is_named(refusal, tree, said):
    """The saved tree is searched for the model's names and shapes; optimizers' moments are none."""
    assert said in refusal(linen.Dense(2), tree, kind=ParamsError)


def test_the_part_is_named_from_the_top(refusal):
    """After a wrong --params-path the right one is that of the whole tree."""
    for model in (linen.Dense(2), nnx.Linear(3, 2, rngs=nnx.Rngs(0)), affine):
        message = refusal(
            model, {"a": {"b": DENSE["params"]}, "c": B}, params_path="a", kind=ParamsError
        )
        assert message.endswith("the model's are under a/b: pass --params-path a/b")


def test_moments_of_an_optimizer_are_never_advised(refusal):
    """They have the names and shapes of params, and would give wrong answers."""
    message = refusal(linen.Dense(2), {"opt_state": STATE.opt_state, "step": 1}, kind=ParamsError)
    assert "perhaps" not in message
    assert "--params-path" not in message


@pytest.mark.parametrize(
    ("leaf", "shown"), [(True, "bool True"), ("dense", "str 'dense'"), (b"x", "bytes b'x'")]
)
def test_leaves_that_are_no_arrays_are_named(refusal, leaf, shown):
    """A bool or a string among a function's params is refused by its name and type."""
    assert refusal(affine, {**DENSE["params"], "use": leaf}, kind=ParamsError) == (
        f"params: 'use': expected an array, got the Python {shown}; leave out of the params what is "
        "none, and keep it in the model's code"
    )


def test_a_configuration_beside_the_params_names_the_part(refusal):
    """Where the string lies beside the params, the part without it is named."""
    tree = {"params": DENSE["params"], "config": {"name": "dense"}}
    assert refusal(affine, tree, kind=ParamsError) == (
        "params: 'config/name': expected an array, got the Python str 'dense'; the model's are under "
        "params: pass --params-path params"
    )


@pytest.mark.parametrize("size", [2, np.int64(2)], ids=["python", "restored"])
def test_a_number_that_code_needs_is_named(refusal, size):
    """A size among the params becomes an array in a program, and cannot be a shape there."""

    def apply(params, x):
        return jnp.broadcast_to(x[:, :1], (len(x), params["size"])) * params["scale"]

    assert refusal(apply, {"size": size, "scale": B}, kind=ParamsError) == (
        "params: 'size': expected an array, got the Python int 2, which the model's code needs as it "
        "is, and params are arrays in a program: leave it out of the params, and keep it in the code"
    )


def test_numbers_that_are_params_stay(plan):
    """Integers and floats that the code computes with are arrays like any."""
    made = plan(lambda p, x: x * p["a"] + p["b"], {"a": 2, "b": 0.5})
    np.testing.assert_allclose(made.goldens[0][2][0], made.goldens[0][1][0] * 2 + 0.5)


def test_an_absent_param_is_named(refusal):
    """None where the model has an array is named as that."""
    params = {"kernel": W, "bias": None}
    assert refusal(linen.Dense(2), {"params": params}) == (
        "params do not fit the model: mismatched params/bias: expected float32[2], got None"
    )
    assert refusal(affine, params).startswith(
        "params: 'bias': expected an array, got None, and the model's code uses it: TypeError: "
    )


def test_names_of_pytorch_are_recognised(refusal):
    """Names like PyTorch's are reported as such, and no mapping is guessed from them."""
    torch = {"weight": W.T.copy(), "bias": B}
    assert refusal(linen.Dense(2), torch, kind=ParamsError) == (
        "params have PyTorch's names (weight) where the model has Flax's (kernel): expected params of "
        "Flax; convert them first, and their axes: weights of PyTorch are [out, in] and [out, in, "
        "height, width]; missing params/kernel float32[3, 2]; extra params/weight float32[2, 3]"
    )


def test_transposed_params_are_recognised(refusal):
    """Where all are transposed, the square ones that no shape shows are thought of."""
    assert refusal(linen.Dense(2), {"kernel": W.T, "bias": B}).endswith(
        "got float32[2, 3], its transpose; were they saved by PyTorch, which keeps weights as [out, "
        "in]? Then square ones are transposed too, and no shape shows it"
    )


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 3, 1, 8), ""),
        ((8, 1, 3, 3), ", its axes in another order"),
        ((4, 3, 3, 1, 8), ", an extra leading axis of 4"),
        ((9, 8), ", as many values in another shape"),
        ((5, 5, 1, 8), ""),
    ],
)
def test_how_a_shape_is_related_is_said(shape, said):
    """For a shape that does not fit, the message describes its relation to the one that would."""
    assert relation((3, 3, 1, 8), shape) == said


def test_replicas_are_those_of_flax(refusal):
    """What flax.jax_utils.replicate makes is what is reported, down to one device."""
    message = refusal(linen.Dense(2), flax.jax_utils.replicate(STATE), kind=ParamsError)
    assert message.startswith(
        "params: replicated over devices: each has the same extra leading axis"
    )
