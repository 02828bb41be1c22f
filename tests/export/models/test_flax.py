"""Models of every kind answer from the bundle as they do in Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx


def close(got, expected, rtol=1e-5, atol=1e-6):
    """Compare answers; true, so that it can be asserted."""
    np.testing.assert_allclose(got, np.asarray(expected), rtol=rtol, atol=atol)
    return True


class Noisy(linen.Module):
    """Dropout and batch statistics, in training mode by default."""

    switch: str = "train"

    @linen.compact
    def __call__(self, x, train: bool = True):
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(2)(x)


class Training(Noisy):
    """Calls its switch `training`, without a default."""

    @linen.compact
    def __call__(self, x, training: bool):
        return Noisy()(x, train=training)


class IsTraining(Noisy):
    """Calls its switch `is_training`, by keyword only."""

    @linen.compact
    def __call__(self, x, *, is_training: bool = True):
        return Noisy()(x, train=is_training)


class Deterministic(Noisy):
    """Has the switch the other way round."""

    @linen.compact
    def __call__(self, x, deterministic: bool = False):
        return Noisy()(x, train=not deterministic)


class IsTrain(Noisy):
    """Has the switch at a place, without a default."""

    @linen.compact
    def __call__(self, x, is_train):
        return Noisy()(x, train=is_train)


class UseRunningAverage(Noisy):
    """Calls its switch as BatchNorm does."""

    @linen.compact
    def __call__(self, x, use_running_average: bool = False):
        return Noisy()(x, train=not use_running_average)


MODES = {
    Noisy: {"train": False},
    Training: {"training": False},
    IsTraining: {"is_training": False},
    IsTrain: {"is_train": False},
    Deterministic: {"deterministic": True},
    UseRunningAverage: {"use_running_average": True},
}


def variables_of(model, **mode):
    """Make variables whose statistics are not the ones that a model starts with."""
    made = model.init(jax.random.key(0), np.ones((2, 3), np.float32), **mode)
    if "batch_stats" not in made:
        return made
    stats = jax.tree.map(lambda a: a + 0.5, made["batch_stats"])
    return {**made, "batch_stats": stats}


@pytest.mark.parametrize("kind", MODES, ids=lambda kind: kind.__name__)
def test_linen_modules_infer(plan, kind):
    """Whatever the argument that switches training is called, inference is exported."""
    model, mode = kind(), MODES[kind]
    variables = variables_of(model, **mode)
    made = plan(model, variables)

    assert close(made.goldens[0][2][0], model.apply(variables, made.goldens[0][1][0], **mode))


def test_linen_batch_stats_and_dropout_survive_the_bundle(export, rows):
    """Batch statistics are params of the bundle, dropout is off, and answers agree."""
    model = Noisy()
    variables = variables_of(model, train=False)
    made = export(model, variables)

    assert close(made.answer(x=rows), model.apply(variables, rows, train=False))
    assert [e.name for e in made.manifest.params.entries] == [
        "batch_stats/BatchNorm_0/mean",
        "batch_stats/BatchNorm_0/var",
        "params/BatchNorm_0/bias",
        "params/BatchNorm_0/scale",
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
    ]


class NetOfAll(nnx.Module):
    """Dropout and batch statistics."""

    def __init__(self, rngs: nnx.Rngs):
        """Make the layers."""
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(self.norm(x)))


def test_nnx_modules_infer(export, rows):
    """An nnx Module is exported in evaluation mode, without its random states."""
    model = NetOfAll(nnx.Rngs(0))
    model.norm.mean[...] = jnp.arange(3.0)
    made = export(model)

    still = nnx.clone(model)
    still.eval()
    assert close(made.answer(x=rows), still(rows))
    assert [e.name for e in made.manifest.params.entries] == [
        *("norm/bias", "norm/mean", "norm/scale", "norm/var", "out/bias", "out/kernel"),
    ]


@pytest.mark.parametrize("with_params", [False, True])
def test_the_callers_nnx_module_is_left_alone(plan, with_params):
    """Exporting neither switches a Module to evaluation nor changes its values."""
    model = NetOfAll(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    counts = [np.asarray(c) for c in jax.tree.leaves(nnx.state(model, nnx.RngCount))]
    plan(model, nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)) if with_params else None)

    assert model.drop.deterministic is False
    assert model.norm.use_running_average is False
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert counts == [np.asarray(c) for c in jax.tree.leaves(nnx.state(model, nnx.RngCount))]


def test_an_abstract_nnx_module_takes_its_weights_from_params(plan):
    """A Module that `nnx.eval_shape` made is as good as its class."""
    model = NetOfAll(nnx.Rngs(0))
    hollow = nnx.eval_shape(lambda: NetOfAll(nnx.Rngs(0)))
    made = plan(hollow, nnx.state(model))
    model.eval()

    assert close(made.goldens[0][2][0], model(made.goldens[0][1][0]))


def test_a_partial_is_a_factory(plan):
    """`functools.partial` of an nnx class, or of a function, is taken for what it makes."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    for factory in (
        functools.partial(nnx.Linear, 3, 2),
        functools.partial(nnx.Linear, 3, out_features=2),
    ):
        made = plan(factory, nnx.state(model))
        assert close(made.goldens[0][2][0], model(made.goldens[0][1][0]))


class Sampler(linen.Module):
    """Draws noise when it answers."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(x) + jax.random.normal(self.make_rng("sample"), (2,))


def test_a_linen_model_that_needs_a_key_says_how_to_pin_it(refusal):
    """Inference that draws random numbers is refused, with the function to export."""
    variables = Sampler().init(
        {"params": jax.random.key(0), "sample": jax.random.key(1)}, np.ones((1, 3), np.float32)
    )
    message = refusal(Sampler(), variables)

    assert message == (
        "Sampler: inference needs a random key, and a program has none; pin one by exporting a "
        "function: def apply(params, x): return model.apply(params, x, "
        "rngs={'sample': jax.random.key(0)})"
    )


def test_dropout_that_stays_on_names_its_key(refusal):
    """Dropout that no argument switches off needs a key too, of its own name."""

    class On(linen.Module):
        """Drops out whenever it is called."""

        @linen.compact
        def __call__(self, x):
            return linen.Dropout(0.5, deterministic=False)(x)

    assert refusal(On(), {}).endswith("rngs={'dropout': jax.random.key(0)})")


def test_a_linen_model_with_a_pinned_key_is_exported(export, rows):
    """The model that the message suggests is exported, and answers as the model with that key."""
    model = Sampler()
    variables = model.init(
        {"params": jax.random.key(0), "sample": jax.random.key(1)}, np.ones((1, 3), np.float32)
    )

    def apply(params, x):
        return model.apply(params, x, rngs={"sample": jax.random.key(0)})

    made = export(apply, variables)
    assert close(made.answer(x=rows), apply(variables, rows))


class NoisyNet(nnx.Module):
    """Draws noise when it answers."""

    def __init__(self, rngs: nnx.Rngs):
        """Keep the streams to draw from."""
        self.out = nnx.Linear(3, 2, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        return self.out(x) + jax.random.normal(self.rngs.sample(), (2,))


def test_an_nnx_model_that_needs_a_key_says_how_to_pin_it(refusal):
    """Inference that draws from its Rngs is refused, with the function to export."""
    message = refusal(NoisyNet(nnx.Rngs(0)))

    assert message == (
        "NoisyNet: inference needs a random key, and a program has none; pin one by exporting a "
        "function: graph, rngs, params = nnx.split(model, nnx.RngState, ...); "
        "def apply(params, x): return nnx.merge(graph, rngs, params, copy=True)(x)"
    )


class Peeking(nnx.Module):
    """Uses a key that it holds, without counting that."""

    def __init__(self, rngs: nnx.Rngs):
        """Keep a stream."""
        self.stream = rngs.sample.fork()

    def __call__(self, x):
        return x + jax.random.normal(self.stream.key[...], (3,))


def test_a_key_that_is_used_uncounted_is_found(refusal):
    """What matters is that answers depend on a key, not that the module counts its draws."""
    assert refusal(Peeking(nnx.Rngs(0))).startswith("Peeking: inference needs a random key, ")


class Recurrent(nnx.Module):
    """Reads a series, as nnx has it: the first state is zeros, for which a key is drawn."""

    def __init__(self, rngs: nnx.Rngs):
        """Make a cell of each kind."""
        self.first = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        self.second = nnx.RNN(nnx.LSTMCell(4, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))[:, -1]


@pytest.mark.parametrize("held", [True, False])
def test_a_key_that_no_answer_depends_on_is_none_that_inference_needs(export, held):
    """Recurrent nnx models are exported, though they draw a key whenever they are called."""
    model = Recurrent(nnx.Rngs(0))
    rows = np.random.default_rng(2).standard_normal((3, 5, 3)).astype(np.float32)
    given = (model, None) if held else (Recurrent, nnx.state(model))
    made = export(*given, inputs=["x:float32[_,5,3]"])

    assert close(made.answer(x=rows), model(rows))


def test_an_nnx_model_with_a_pinned_key_is_exported(export, rows):
    """The model that the message suggests is exported, and answers as the original model did."""
    graph, rngs, params = nnx.split(NoisyNet(nnx.Rngs(0)), nnx.RngState, ...)

    def apply(params, x):
        return nnx.merge(graph, rngs, params, copy=True)(x)

    made = export(apply, params)
    assert close(made.answer(x=rows), apply(params, rows))
    assert [e.name for e in made.manifest.params.entries] == ["out/bias/value", "out/kernel/value"]


def test_a_model_left_in_training_mode_is_recognized(refusal):
    """A linen model that would update its statistics is refused with a guess at why."""

    class Stuck(linen.Module):
        """Updates its statistics whenever it is called."""

        @linen.compact
        def __call__(self, x):
            return linen.BatchNorm(use_running_average=False)(x)

    message = refusal(Stuck(), variables_of(Stuck()))
    assert message.startswith("Stuck: expected inference to leave its variables alone, got ")
    assert message.endswith("; is it still in training mode?")


def test_a_model_that_keeps_something_between_calls_says_how_to_pass_it(refusal):
    """A cache that a model would update is refused, with what to do instead."""

    class Counting(linen.Module):
        """Counts its calls."""

        @linen.compact
        def __call__(self, x):
            count = self.variable("cache", "count", jnp.zeros, ())
            count.value += 1
            return x + count.value

    assert refusal(Counting(), Counting().init(jax.random.key(0), np.ones((1, 3)))) == (
        "Counting: expected inference to leave its variables alone, got Cannot update variable "
        '"count" in "/" because collection "cache" is immutable.; a program keeps nothing between '
        "calls: take it as an input, and return it"
    )
