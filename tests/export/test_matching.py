"""Params of a checkpoint, compared with what the model has."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx, serialization

from export import ParamsError
from export.checkpoints import read_params, take_subtree
from tests.export.conftest import B, W
from tests.export.test_checkpoints import orbax, same


def test_params_path_goes_deeper(tmp_path):
    """Keys of a subtree are joined by dots or slashes, and list places are numbers."""
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"a": [{"b": W}, {"b": B}]}))
    tree = read_params(tmp_path / "p.pkl", allow_pickle=True)
    for path in ("a.1", "a/1"):
        assert same(take_subtree(tree, path)[0], {"b": B})


def test_params_alone_are_enough_where_there_is_no_other_collection(plan):
    """A linen model without statistics takes its params with or without `params` on top."""
    model = linen.Dense(2)
    for tree in ({"kernel": W, "bias": B}, {"params": {"kernel": W, "bias": B}}):
        made = plan(model, tree)
        assert [e.name for e in made.packing.entries] == ["params/bias", "params/kernel"]


def test_params_that_do_not_fit_are_listed(refusal):
    """Missing, extra and mis-shaped params are all named in one line."""
    message = refusal(
        linen.Dense(2),
        {"params": {"kernel": W.T, "scale": B}},
        kind=ParamsError,
    )
    assert message == (
        "params do not fit the model: missing params/bias float32[2], perhaps the extra "
        "params/scale; extra params/scale float32[2]; mismatched params/kernel: expected "
        "float32[3, 2], got float32[2, 3], its transpose"
    )


def test_params_of_other_shapes_alone_let_the_inputs_be_suspected(refusal):
    """A linen model gets its shapes from its inputs: with a wrong one every param is right."""
    message = refusal(linen.Dense(2), {"kernel": W, "bias": B}, inputs=["x:float32[_,4]"])
    assert message == (
        "params do not fit the model: mismatched params/kernel: expected float32[4, 2], got "
        "float32[3, 2]; was it trained on x: float32[_, 4]? The inputs give the model its shapes"
    )


def test_embeddings_of_another_number_are_no_matter_of_inputs(refusal):
    """The size of a vocabulary is a setting of the model: no input could be wrong."""
    table = np.zeros((7, 2), np.float32)
    message = refusal(linen.Embed(5, 2), {"embedding": table}, inputs=["x:int32[_,4]"])
    assert message == (
        "params do not fit the model: mismatched params/embedding: expected float32[5, 2], got "
        "float32[7, 2]; a model is made with the number of its embeddings, and no input changes it"
    )


def test_many_params_that_do_not_fit_are_counted(refusal):
    """Of each kind of problem four are shown, and the number of the others: none hides another."""
    model = linen.Sequential([linen.Dense(2) for _ in range(7)])
    wrong = {f"layer{i}": B[:1] for i in range(9)} | {"layers_0": {"kernel": W.T, "bias": B}}
    assert refusal(model, {"params": wrong}) == (
        "params do not fit the model: "
        + "".join(
            f"missing params/layers_{i}/{name}; "
            for i in (1, 2)
            for name in ("bias float32[2]", "kernel float32[2, 2]")
        )
        + "and 8 more missing; "
        + "".join(f"extra params/layer{i} float32[1]; " for i in range(4))
        + "and 5 more extra; mismatched params/layers_0/kernel: expected float32[3, 2], got "
        "float32[2, 3], its transpose"
    )


def test_params_of_another_kind_do_not_fit(refusal):
    """Integers where the model has floats are refused; other floats are taken."""
    message = refusal(linen.Dense(2), {"kernel": W.astype(np.int32), "bias": B})
    assert message == (
        "params do not fit the model: mismatched params/kernel: expected float32[3, 2], got "
        "int32[3, 2]"
    )


def test_params_one_level_too_high_hint_at_params_path(refusal):
    """Where the weights are one key deeper, the message names it."""
    message = refusal(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), {"model": {"kernel": W, "bias": B}})
    assert message == (
        "params: expected those of the model alone, got model; the model's are under model: pass "
        "--params-path model"
    )


def test_params_that_are_no_arrays_are_refused(refusal):
    """A tree with something else in it is refused by the kind of that."""
    assert refusal(lambda _params, x: x, {"w": object()}) == (
        "params: 'w': expected an array, got object"
    )


class Net(nnx.Module):
    """Twelve layers, so that list places have one and two digits, with states of all kinds."""

    def __init__(self, rngs: nnx.Rngs):
        """Make the layers, each with its own values."""
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(self.drop(x))


@pytest.fixture(scope="module")
def net():
    """An nnx Module whose statistics are not the ones it starts with."""
    model = Net(nnx.Rngs(3))
    model.norm.mean[...] = jnp.arange(3.0)
    return model


def save_state(path, net):
    """Save the whole state, randomness included."""
    return orbax(path, nnx.state(net))


def save_pure(path, net):
    """Save the whole state as plain dicts, places as numbers."""
    return orbax(path, nnx.to_pure_dict(nnx.state(net)))


def save_without_randomness(path, net):
    """Save the state of a user who splits the randomness off."""
    _, _, rest = nnx.split(net, nnx.RngState, ...)
    return orbax(path, nnx.to_pure_dict(rest))


def save_msgpack(path, net):
    """Save plain dicts as Flax msgpack, which has only string keys."""
    _, _, rest = nnx.split(net, nnx.RngState, ...)
    path.write_bytes(serialization.to_bytes(_with_string_keys(nnx.to_pure_dict(rest))))
    return path


def _with_string_keys(tree):
    """Return a tree whose keys are strings."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _with_string_keys(value) for key, value in tree.items()}


@pytest.mark.parametrize("save", [save_state, save_pure, save_without_randomness, save_msgpack])
def test_nnx_states_are_read_in_every_form(tmp_path, plan, net, save):
    """
    A saved nnx.state, with or without randomness, as State or as a pure dict with places
    as numbers or strings, fits the Module.
    """
    made = plan(Net, save(tmp_path / "c", net))
    x = made.goldens[0][1][0]

    assert "layers/11/kernel" in {e.name for e in made.packing.entries}
    assert not any("rngs" in e.name for e in made.packing.entries)
    np.testing.assert_allclose(
        made.goldens[0][2][0],
        nnx.view(net, deterministic=True, use_running_average=True)(x),
        rtol=1e-4,
    )


def test_an_nnx_state_in_memory_is_as_good(plan, net):
    """The Python call takes an nnx.State."""
    made = plan(Net, nnx.state(net))
    assert len(made.packing.entries) == 28


def test_an_exported_checkpoint_answers_as_its_model(export, steps, rows):
    """From a directory of steps to a bundle to an answer."""

    def dense(params, x):
        return (x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]) * params["count"]

    made = export(dense, steps / "3")
    np.testing.assert_allclose(made.answer(x=rows), (rows @ W + B) * 3, rtol=1e-5)
