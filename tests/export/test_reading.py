"""A bundle has the params that answers depend on: no more than that is asked of a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from export import ParamsError
from export.reading import read_params

ROWS = np.random.default_rng(3).standard_normal((3, 3)).astype(np.float32)
MESH = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def names(made):
    """Return the names of the params in the bundle."""
    return [entry.name for entry in made.packing.entries]


def reference(model, variables, made, **switches):
    """Return what the model answers to the golden's inputs."""
    return model.apply(variables, made.goldens[0][1][0], **switches)


class Sowing(linen.Module):
    """Sows a loss and an activation, perturbs, and counts under a name that it never reads."""

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4)(x)
        self.sow("losses", "balance", (x**2).sum())
        self.sow("intermediates", "hidden", x)
        x = self.perturb("hidden", x)
        x = self.perturb("again", x, collection="gradients")
        return linen.Dense(2)(x)


UNREAD = (
    "left out 3 params, on which no answer depends: gradients/again, losses/balance/0, "
    "perturbations/hidden"
)


def test_collections_that_only_training_looks_at_are_left_out(plan):
    """Collections from sow or perturb are not required of a checkpoint, nor read from it."""
    model = Sowing()
    variables = model.init(jax.random.key(0), ROWS)
    params = {"params": variables["params"]}
    sown = {**params, "losses": variables["losses"], "perturbations": variables["perturbations"]}
    for saved in (params, params["params"], sown):
        made = plan(model, saved)

        assert {name.split("/")[0] for name in names(made)} == {"params"}
        np.testing.assert_allclose(made.goldens[0][2][0], reference(model, params, made), rtol=1e-5)
        assert made.notes == (UNREAD,)


def test_intermediates_in_a_checkpoint_are_left_out(plan):
    """Variables that were saved with what apply made of them are as good."""
    model = Sowing()
    params = {"params": model.init(jax.random.key(0), ROWS)["params"]}
    _, made_by_apply = model.apply(params, ROWS, mutable=["intermediates"])
    made = plan(model, {**params, **made_by_apply})

    assert {name.split("/")[0] for name in names(made)} == {"params"}
    assert made.notes[0].startswith(
        "left out 4 params, on which no answer depends: gradients/again"
    )


class Normed(linen.Module):
    """Has statistics that its answers need, beside a loss that they do not."""

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=True)(x)
        self.sow("losses", "size", x.sum())
        return x


def test_collections_that_apply_needs_are_asked_for(refusal):
    """What an answer depends on is missing by name, and nothing else is."""
    params = Normed().init(jax.random.key(0), ROWS)["params"]
    assert refusal(Normed(), {"params": params}, kind=ParamsError) == (
        "params do not fit the model: missing batch_stats/BatchNorm_0/mean float32[3]; missing "
        "batch_stats/BatchNorm_0/var float32[3]"
    )


class Headed(linen.Module):
    """Has heads that training alone uses; Flax names one of them."""

    layers: int = 1
    bias: bool = True

    def setup(self):
        """Make the head that another method uses."""
        self.projection = linen.Dense(5)

    @linen.compact
    def __call__(self, x, train: bool = True):
        for _ in range(self.layers):
            x = linen.Dense(3, use_bias=self.bias)(x)
        out = linen.Dense(2, name="out")(x)
        return (out, linen.Dense(4)(x)) if train else out

    def project(self, x):
        """Use the other head."""
        return self.projection(self(x)[0])


class Training(linen.Module):
    """Has a head under a switch of its own name."""

    @linen.compact
    def __call__(self, x, with_loss: bool = False):
        out = linen.Dense(2)(x)
        return (out, linen.Dense(4)(x)) if with_loss else out


@pytest.mark.parametrize(
    ("model", "how", "left"),
    [
        (Headed(), {}, {"params/Dense_1"}),
        (Headed(), {"method": "project"}, {"params/Dense_1", "params/projection"}),
        (Training(), {"with_loss": True}, {"params/Dense_1"}),
    ],
    ids=["train", "method", "other switch"],
)
def test_params_that_training_alone_has_are_left_out(export, model, how, left):
    """A head that inference does not use is in no bundle, and a note reports it."""
    variables = model.init(jax.random.key(0), ROWS, **how)
    off = {"train": False} if isinstance(model, Headed) else {}
    made = export(model, variables, buckets=(1, 2))

    (note,) = made.report.notes
    heads = sorted(f"{head}/{leaf}" for head in left for leaf in ("bias", "kernel"))
    assert note == f"left out {len(heads)} params, on which no answer depends: {', '.join(heads)}"
    np.testing.assert_allclose(
        made.answer(x=ROWS), model.apply(variables, ROWS, **off), rtol=1e-5, atol=1e-6
    )


ANOTHER = "; was it trained with another configuration?"


@pytest.mark.parametrize(
    ("model", "trained", "message"),
    [
        (
            Headed(1),
            Headed(2),
            (
                "extra params/Dense_1/bias, where the model has params/Dense_0/bias; extra "
                "params/Dense_1/kernel, where the model has params/Dense_0/kernel"
            ),
        ),
        (
            Headed(bias=False),
            Headed(),
            "extra params/Dense_0/bias, where the model has params/Dense_0/kernel",
        ),
        (
            linen.Sequential([linen.Dense(3)]),
            linen.Sequential([linen.Dense(3), linen.LayerNorm()]),
            (
                "extra params/layers_1/bias, where the model has params/layers_0/bias; extra "
                "params/layers_1/scale"
            ),
        ),
    ],
    ids=["layers", "bias", "norm"],
)
def test_params_of_a_larger_model_are_no_heads(refusal, model, trained, message):
    """What looks like a layer that the model lacks is refused: leaving it out changes answers."""
    off = {"train": False} if isinstance(trained, Headed) else {}
    variables = trained.init(jax.random.key(0), ROWS, **off)
    said = refusal(model, variables, kind=ParamsError)
    assert said.startswith("params do not fit the model: extra params/")
    assert (
        said.removeprefix("params do not fit the model: ").split("; ")[0] == message.split("; ")[0]
    )
    assert said.endswith(ANOTHER)


class OnAMesh(linen.Module):
    """Is made under a mesh, and answers without."""

    @linen.compact
    def __call__(self, x):
        if self.is_initializing() and jax.sharding.get_abstract_mesh().empty:
            raise RuntimeError("expected a mesh")
        kernel = linen.with_partitioning(linen.initializers.ones, (None, "model"))
        return linen.Dense(2, kernel_init=kernel)(x)


def on_mesh():
    """Make the variables of OnAMesh."""
    with jax.set_mesh(MESH):
        return linen.meta.unbox(OnAMesh().init(jax.random.key(0), ROWS))


def test_a_model_that_cannot_be_made_here_is_traced_with_what_was_saved(plan):
    """Where init needs a mesh, the model's params are taken from the checkpoint."""
    variables = on_mesh()
    made = plan(OnAMesh(), {**variables, "losses": {"a": np.ones(2, np.float32)}})

    np.testing.assert_allclose(made.goldens[0][2][0], reference(OnAMesh(), variables, made))
    assert names(made) == ["params/Dense_0/bias", "params/Dense_0/kernel"]
    assert made.notes == ("left out 1 param, on which no answer depends: losses/a",)


def test_what_a_model_that_cannot_be_made_lacks_is_named(refusal):
    """Where init fails and the checkpoint lacks a param, both are reported."""
    kernel = {"kernel": on_mesh()["params"]["Dense_0"]["kernel"]}
    message = refusal(OnAMesh(), {"params": {"Dense_0": kernel}})
    assert message.startswith("the model cannot be traced: RuntimeError: expected a mesh (test_")
    assert message.endswith(
        '; nor do the params fit it as they are: Could not find parameter named "bias" in scope '
        '"/Dense_0".'
    )


class Sharded(nnx.Module):
    """Says how its weights lie on a mesh, and has a head for training and a statistic."""

    def __init__(self, rngs):
        """Make the layers, which takes a mesh."""
        shape = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        self.linear = nnx.Linear(3, 2, kernel_init=shape, rngs=rngs)
        self.head = nnx.Linear(3, 4, kernel_init=shape, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train=True):
        out = self.drop(self.linear(x))
        return (out, self.head(x)) if train else out


@pytest.mark.parametrize("within", [False, True], ids=["no mesh", "mesh"])
def test_an_nnx_class_with_shardings_needs_no_mesh(plan, within):
    """Weights that are laid over a mesh in training are taken from a checkpoint without one."""
    with jax.set_mesh(MESH):
        model = Sharded(nnx.Rngs(0))
    state = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for given in ((Sharded, state), (model, None)):
        if within:
            with jax.set_mesh(MESH):
                made = plan(*given)
        else:
            made = plan(*given)

        expected = made.goldens[0][1][0] @ state["linear"]["kernel"] + state["linear"]["bias"]
        np.testing.assert_allclose(made.goldens[0][2][0], expected, rtol=1e-5, atol=1e-6)
        assert names(made) == ["linear/bias", "linear/kernel"]
        assert made.notes == (
            "left out 2 params, on which no answer depends: head/bias, head/kernel",
        )


def test_an_nnx_checkpoint_without_the_head_of_training_is_enough(plan, refusal):
    """A checkpoint may lack what no answer depends on; what one does is missing by name."""
    with jax.set_mesh(MESH):
        state = nnx.to_pure_dict(nnx.state(Sharded(nnx.Rngs(0)), nnx.Param))

    assert names(plan(Sharded, {"linear": state["linear"]})) == ["linear/bias", "linear/kernel"]
    assert refusal(Sharded, {"head": state["head"]}, kind=ParamsError) == (
        "params do not fit the model: missing linear/bias float32[2]; missing linear/kernel "
        "float32[3, 2]"
    )
    gained = {"linear": {**state["linear"], "gain": np.ones(2)}}
    assert refusal(Sharded, gained, kind=ParamsError) == (
        "params do not fit the model: extra linear/gain, where the model has linear/kernel"
        + ANOTHER
    )


def test_params_that_one_bucket_reads_are_needed(export):
    """A param that answers of one length alone depend on is in the bundle."""

    class Long(linen.Module):
        """Has a bias for long inputs."""

        @linen.compact
        def __call__(self, x):
            bias = self.param("bias", linen.initializers.ones, (1,))
            scale = self.param("scale", linen.initializers.ones, (1,))
            return x.sum(1, keepdims=True) * scale + (bias * 0 if x.shape[1] > 2 else 0)

    model, x = Long(), np.ones((3, 4), np.float32)
    variables = {"params": {"bias": np.float32([3]), "scale": np.float32([2])}}
    made = export(
        model, variables, inputs=["x:float32[_,seq]"], axes={"seq": (2, 4)}, buckets=(1, 2)
    )

    assert [e.name for e in made.manifest.params.entries] == ["params/bias", "params/scale"]
    np.testing.assert_allclose(made.answer(x=x), model.apply(variables, x))


def test_a_bucket_that_cannot_be_traced_leaves_nothing_out():
    """Where a later bucket fails, lowering reports it: until then every param counts as read."""

    def apply(params, inputs):
        return inputs["x"] * params["read"] + jnp.ones(len(inputs["x"]) - 2).sum()

    shapes = {"read": jax.ShapeDtypeStruct((1,), "float32"), "unread": np.ones(2, np.float32)}
    buckets = [{"x": jax.ShapeDtypeStruct((rows, 1), "float32")} for rows in (4, 1)]

    assert read_params(apply, shapes, buckets[:1]) == {"read"}
    assert read_params(apply, shapes, buckets) == {"read", "unread"}


def test_a_function_keeps_what_it_was_given_and_says_what_it_does_not_read(plan):
    """Params that the caller passed stay; a note reports the size of the unread ones."""
    params = {"w": np.ones((3, 2), np.float32), "opt": {"mu": np.ones((3, 2), np.float32)}}
    made = plan(lambda p, x: x @ p["w"] + 0 * jnp.zeros_like(p["opt"]["mu"]).sum(), params)

    assert names(made) == ["opt/mu", "w"]
    assert made.notes == ("the bundle has 1 param, on which no answer depends: opt/mu (24 bytes)",)
