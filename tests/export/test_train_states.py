"""A TrainState as params: the model's own collections are taken, wherever in it they are."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, serialization
from flax.training import train_state

from export import ParamsError


def orbax(path, tree):
    """Write one Orbax checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


class Classifier(linen.Module):
    """A dense layer with a batch norm, so that there are two collections."""

    @linen.compact
    def __call__(self, x, train: bool = True):
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(2)(x)


class TrainState(train_state.TrainState):
    """What a training loop keeps."""

    batch_stats: dict
    ema_params: dict


@pytest.fixture
def variables():
    """Variables of Classifier."""
    x = np.ones((2, 3), np.float32)
    made = Classifier().init(jax.random.key(0), x)
    stats = jax.tree.map(lambda a: a + 0.5, made["batch_stats"])
    return {"params": made["params"], "batch_stats": stats}


@pytest.fixture
def state(variables):
    """A TrainState of Classifier after some steps."""
    return TrainState.create(
        apply_fn=Classifier().apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        ema_params=jax.tree.map(lambda a: 2 * a, variables["params"]),
        tx=optax.adam(1e-3),
    )


LEFT_OUT = "left out of the checkpoint: ema_params, opt_state, step, not variables of the model"


def expected(variables, plan):
    """Return what the model answers to the golden's inputs."""
    return Classifier().apply(variables, plan.goldens[0][1][0], train=False)


def test_a_train_state_loses_what_is_not_the_model(tmp_path, plan, variables, state):
    """A whole TrainState is accepted for a linen model; a note lists what was dropped."""
    path = orbax(tmp_path / "c", serialization.to_state_dict(state))
    made = plan(Classifier(), path)

    assert made.notes == (LEFT_OUT,)
    np.testing.assert_allclose(made.goldens[0][2][0], expected(variables, made), rtol=1e-5)


def test_params_path_takes_a_subtree(tmp_path, plan, state):
    """--params-path picks a part of a TrainState, such as its averaged weights."""
    path = orbax(tmp_path / "c", serialization.to_state_dict(state))
    names = ("bias", "kernel")

    def dense(params, x):
        return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    for subtree in ("ema_params", "ema_params/", "ema_params."):
        made = plan(dense, path, params_path=subtree.strip("/."))
        assert [e.name for e in made.packing.entries][-2:] == [f"Dense_0/{n}" for n in names]
    np.testing.assert_allclose(
        made.goldens[0][2][0],
        dense(state.ema_params, made.goldens[0][1][0]),
        rtol=1e-5,
    )


def test_params_path_that_is_absent_names_the_nearest(refusal, state):
    """A subtree that is not there is refused with those that are."""
    message = refusal(Classifier(), state, params_path="ema_param")
    assert message == (
        "params path 'ema_param': expected one of batch_stats, ema_params, opt_state, params, "
        "step, got 'ema_param'; did you mean 'ema_params'?"
    )


def test_a_train_state_in_memory_is_as_good(plan, variables, state):
    """The Python call takes a TrainState as it is."""
    made = plan(Classifier(), state)

    assert made.notes == (LEFT_OUT,)
    np.testing.assert_allclose(made.goldens[0][2][0], expected(variables, made), rtol=1e-5)


def test_all_variables_inside_a_train_state(plan, variables):
    """A TrainState whose params are all variables of a model is unpacked."""
    made = plan(Classifier(), {"params": variables, "step": np.int32(1)})
    np.testing.assert_allclose(made.goldens[0][2][0], expected(variables, made), rtol=1e-5)


BESIDE = "batch_stats of the checkpoint come from beside the subtree of --params-path"


def averaged(variables):
    """Return the variables with params of twice the size, as `state` has in `ema_params`."""
    return {**variables, "params": jax.tree.map(lambda a: 2 * a, variables["params"])}


def test_collections_come_from_beside_the_subtree(tmp_path, plan, variables, state):
    """--params-path selects the averaged weights, and the statistics beside them are added."""
    path = orbax(tmp_path / "c", serialization.to_state_dict(state))
    for tree in (path, state):
        made = plan(Classifier(), tree, params_path="ema_params")

        assert made.notes == (BESIDE,)
        np.testing.assert_allclose(
            made.goldens[0][2][0], expected(averaged(variables), made), rtol=1e-5
        )


def average_in_the_optimizer(variables):
    """Keep the averages in the optimizer's state, two levels below the statistics."""
    doubled = averaged(variables)["params"]
    return {**variables, "opt_state": {"0": {"count": np.int32(1)}, "1": {"ema": doubled}}}


def average_beside_all_variables(variables):
    """Keep all variables under `params`, and averages of the params alone beside them."""
    return {"params": variables, "ema": averaged(variables)["params"], "step": np.int32(1)}


def average_of_a_params_collection(variables):
    """Keep averages with the name of their collection on top."""
    return {**variables, "ema": {"params": averaged(variables)["params"]}, "step": np.int32(1)}


def statistics_of_the_averages(variables):
    """Keep statistics beside the averages, and others further away."""
    wrong = jax.tree.map(lambda a: a + 9, variables["batch_stats"])
    return {**variables, "batch_stats": wrong, "ema": averaged(variables)}


@pytest.mark.parametrize(
    ("tree", "subtree", "notes"),
    [
        (average_in_the_optimizer, "opt_state.1.ema", (BESIDE,)),
        (average_beside_all_variables, "ema", (BESIDE,)),
        (average_of_a_params_collection, "ema", (BESIDE,)),
        (statistics_of_the_averages, "ema.params", (BESIDE,)),
        (statistics_of_the_averages, "ema", ()),
    ],
)
def test_the_nearest_collections_are_taken(plan, variables, tree, subtree, notes):
    """Collections that a subtree lacks are looked for from the inside out."""
    made = plan(Classifier(), tree(variables), params_path=subtree)

    assert made.notes == notes
    np.testing.assert_allclose(
        made.goldens[0][2][0], expected(averaged(variables), made), rtol=1e-5
    )


def test_a_collection_that_is_nowhere_is_missing(refusal, variables):
    """Without statistics in the checkpoint the model's are missing, with or without a subtree."""
    missing = "params do not fit the model: missing batch_stats/BatchNorm_0/mean float32[3]; "
    for tree, subtree in ((variables["params"], None), ({"ema": variables["params"]}, "ema")):
        message = refusal(Classifier(), tree, params_path=subtree, kind=ParamsError)
        assert message == f"{missing}missing batch_stats/BatchNorm_0/var float32[3]"
