"""An nnx Module that holds plain arrays, in no nnx.Variable."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from export import ParamsError

ROWS = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)
PLAIN = {"shift", "scale", "tables/0"}


class Net(nnx.Module):
    """A layer with a plain jax array, a NumPy one, and a list of them."""

    def __init__(self, rngs: nnx.Rngs):
        """Make the layer and the arrays, which do not depend on the random key."""
        self.layer = nnx.Linear(3, 2, rngs=rngs)
        self.shift = jnp.arange(2.0)
        self.scale = np.array([2, 3], np.float32)
        self.tables = nnx.List([jnp.ones(2)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.layer(x)) * self.scale + self.shift + self.tables[0]


class Features(nnx.Module):
    """A layer on random features, drawn once and kept as a plain array."""

    def __init__(self, rngs: nnx.Rngs):
        """Draw the features."""
        self.layer = nnx.Linear(4, 2, rngs=rngs)
        self.features = jax.random.normal(rngs.params(), (3, 4))

    def __call__(self, x):
        return self.layer(jnp.cos(x @ self.features))


@pytest.fixture
def net():
    """A Net of other weights than the exporter would make."""
    made = Net(nnx.Rngs(7))
    made.shift = jnp.array([5.0, 7.0])
    return made


def answer(model, made):
    """Return what the model answers to the golden's inputs."""
    return nnx.view(model, deterministic=True)(made.goldens[0][1][0])


def names(made):
    """Return the names of the params."""
    return {entry.name for entry in made.packing.entries}


def test_plain_arrays_become_params(export, net):
    """A module with plain arrays is exported as it is, and they are params of it."""
    made = export(net)

    assert {p.name for p in made.manifest.params.entries} == PLAIN | {"layer/bias", "layer/kernel"}
    np.testing.assert_allclose(
        made.answer(x=ROWS), nnx.view(net, deterministic=True)(ROWS), rtol=1e-5
    )
    assert made.report.notes == ()


def test_plain_arrays_come_from_a_checkpoint(tmp_path, plan, net):
    """A saved nnx.state has the plain arrays, and a class takes them from there."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", nnx.state(net))
    for params in (nnx.state(net), tmp_path / "c"):
        made = plan(Net, params)
        assert names(made) > PLAIN
        assert made.notes == ()
        np.testing.assert_allclose(made.goldens[0][2][0], answer(net, made), rtol=1e-5)


@pytest.mark.parametrize("model", [Net, functools.partial(Net)], ids=["class", "partial"])
def test_plain_arrays_that_a_checkpoint_lacks_come_from_the_code(plan, net, model):
    """Where only the nnx.Params were saved, arrays that the code always makes are used, with a note."""
    net.shift = jnp.arange(2.0)
    made = plan(model, nnx.state(net, nnx.Param))

    assert made.notes == (
        "the checkpoint has no scale, shift, tables/0: what the model's code makes is taken",
    )
    np.testing.assert_allclose(made.goldens[0][2][0], answer(net, made), rtol=1e-5)


def test_a_module_of_ones_own_keeps_its_plain_arrays(plan, net):
    """A module that was made by the user has the arrays that a checkpoint of params lacks."""
    made = plan(net, nnx.state(net, nnx.Param))
    np.testing.assert_allclose(made.goldens[0][2][0], answer(net, made), rtol=1e-5)


def test_random_plain_arrays_have_to_come_from_the_checkpoint(plan, refusal):
    """An array that the code draws anew each time is not made up: it is missing."""
    model = Features(nnx.Rngs(7))

    made = plan(Features, nnx.state(model))
    np.testing.assert_allclose(made.goldens[0][2][0], model(made.goldens[0][1][0]), rtol=1e-5)
    assert refusal(Features, nnx.state(model, nnx.Param), kind=ParamsError) == (
        "params do not fit the model: missing features float32[3, 4]"
    )


def test_plain_arrays_are_not_cast(plan, net):
    """--dtype casts what training moves; tables that the code made keep their dtype."""
    made = plan(net, dtype="bfloat16")
    dtypes = {entry.name: entry.dtype for entry in made.packing.entries}
    assert {name: dtypes[name] for name in PLAIN} == dict.fromkeys(PLAIN, "float32")
    assert dtypes["layer/kernel"] == ml_dtypes.bfloat16.dtype.name
