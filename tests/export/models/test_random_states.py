"""Random states of nnx Modules, which inference must not use, keep their shapes and kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

ROWS = np.random.default_rng(3).standard_normal((3, 3)).astype(np.float32)


class Block(nnx.Module):
    """A layer with dropout."""

    def __init__(self, rngs):
        """Make the layer."""
        self.linear, self.drop = nnx.Linear(3, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(jnp.tanh(self.linear(x)))


def many(rngs, count=3):
    """Make several blocks as one, whose keys are arrays of keys."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(keys):
        return Block(keys)

    return make(rngs)


class Scanned(nnx.Module):
    """Goes through its layers by a scan."""

    def __init__(self, rngs):
        """Make the layers."""
        self.blocks = many(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(carry, block):
            return block(carry)

        return forward(x, self.blocks)


class Ensemble(Scanned):
    """Averages what its members answer."""

    def __call__(self, x):
        return nnx.vmap(lambda block, y: block(y), in_axes=(0, None))(self.blocks, x).mean(0)


class Holding(nnx.Module):
    """Holds keys of several kinds as it likes, and uses none."""

    def __init__(self, rngs):
        """Make the layer and the keys."""
        self.block = Block(rngs)
        self.typed = jax.random.key(1)
        self.several = nnx.Variable(jax.random.split(jax.random.key(2, impl="rbg"), 4))
        self.legacy = nnx.RngKey(jax.random.PRNGKey(3), tag="legacy")
        self.fork = rngs.split(2)

    def __call__(self, x):
        if self.several.shape != (4,) or self.legacy.dtype != jnp.uint32:
            raise AssertionError
        return self.block(x) + 0 * jax.random.key_data(self.several[...]).shape[-1]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("kind", [Scanned, Ensemble, Holding])
@pytest.mark.parametrize("as_class", [False, True], ids=["module", "class"])
def test_random_states_keep_their_shape_and_implementation(plan, kind, impl, as_class):
    """Arrays of keys, of any implementation, stand where the module has them."""
    model = kind(nnx.Rngs(jax.random.key(0, impl=impl)))

    def factory(rngs):
        del rngs
        return kind(nnx.Rngs(jax.random.key(7, impl=impl)))

    # What a checkpoint has: arrays alone.
    saved = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    made = plan(factory, saved) if as_class else plan(model)
    model.eval()

    np.testing.assert_allclose(
        made.goldens[0][2][0], model(made.goldens[0][1][0]), rtol=1e-5, atol=1e-6
    )
    assert {e.name.rsplit("/", 1)[1] for e in made.packing.entries} == {"bias", "kernel"}


def test_random_states_in_a_checkpoint_are_passed_over(plan):
    """A whole state has keys, counts and keys in Variables; none becomes a param."""
    model = Holding(nnx.Rngs(0))
    made = plan(Holding, nnx.state(model))
    assert {e.name for e in made.packing.entries} == {"block/linear/bias", "block/linear/kernel"}


class Drawing(Holding):
    """Draws with a key that it holds in a Variable."""

    def __call__(self, x):
        return x + jax.random.normal(self.several[2], (3,))


def test_a_key_in_a_variable_that_answers_depend_on_is_found(refusal):
    """A key is one wherever it is held: answers that depend on it are refused."""
    assert refusal(Drawing(nnx.Rngs(0))).startswith("Drawing: inference needs a random key, ")
