"""Equinox modules are exported as they are: of one row or of all, with a state or without."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from export import ParamsError
from tests.export.models.test_flax import close

IMAGE = "image:float32[_,1,8,8]"


class Net(eqx.Module):
    """What needs more than weights: statistics, dropout, a number."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear
    scale: float

    def __init__(self, key):
        conv, head = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, key=conv)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(144, 3, key=head)
        self.scale = 2.0

    def __call__(self, image, state, *, key=None):
        """Answer one image."""
        x, state = self.norm(self.conv(image), state)
        return self.head(self.dropout(x, key=key).ravel()) * self.scale, state


class Batched(eqx.Module):
    """Takes all rows."""

    linear: eqx.nn.Linear

    def __call__(self, x):
        """Answer rows."""
        return jax.vmap(self.linear)(x)


class Noisy(eqx.Module):
    """Has a switch with a name that no library uses."""

    linear: eqx.nn.Linear
    training: bool = True

    def __call__(self, x, key):
        """Answer one row."""
        noise, _ = jax.random.split(key)
        x = self.linear(x)
        return x + jax.random.normal(noise, x.shape) if self.training else x


class Counting(eqx.Module):
    """Counts its calls."""

    count: eqx.nn.StateIndex
    linear: eqx.nn.Linear

    def __init__(self):
        self.count = eqx.nn.StateIndex(jnp.array(0))
        self.linear = LINEAR

    def __call__(self, x, state):
        """Answer one row."""
        count = state.get(self.count)
        return self.linear(x) + count, state.set(self.count, count + 1)


class OwnMean(eqx.Module):
    """Means one thing with a row and another with all."""

    bias: jax.Array

    def __call__(self, x):
        """Answer one row, or rows."""
        return x - x.mean(0) + self.bias


LINEAR = eqx.nn.Linear(3, 2, key=jax.random.key(0))
MLP = eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(1))


@pytest.fixture
def trained():
    """A module and its state after a few batches."""
    model, state = eqx.nn.make_with_state(Net)(jax.random.key(2))
    image = jax.random.normal(jax.random.key(3), (8, 1, 8, 8))
    keys = jax.random.split(jax.random.key(4), 8)
    step = jax.vmap(
        lambda x, state, key: model(x, state, key=key),
        axis_name="batch",
        in_axes=(0, None, 0),
        out_axes=(0, None),
    )
    for _ in range(3):
        _, state = step(image, state, keys)
    return model, state


@pytest.fixture
def images():
    """Seven images, more than the largest bucket."""
    return np.random.default_rng(1).standard_normal((7, 1, 8, 8)).astype(np.float32)


def inferred(trained, images):
    """Answer as Equinox does in inference."""
    model, state = trained
    return jax.vmap(eqx.nn.inference_mode(model), in_axes=(0, None))(images, state)[0]


def test_a_module_of_one_row_answers_batches(export, rows):
    """Nothing is wrapped by hand; params have the names of their fields."""
    exported = export(MLP)

    assert [p.name for p in exported.manifest.params.entries] == [
        *("layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias"),
    ]
    assert exported.report.notes == ()
    assert close(exported.answer(x=rows), jax.vmap(MLP)(rows))


def test_statistics_come_from_the_state(export, trained, images):
    """Inference is switched on, in the module and in those inside; the state has names."""
    exported = export(trained, inputs=[IMAGE])

    assert [p.name for p in exported.manifest.params.entries] == [
        *("conv/weight", "conv/bias", "norm/weight", "norm/bias", "head/weight", "head/bias"),
        "state/norm/batch_counter",
        *("state/norm/batch_state_index/0", "state/norm/batch_state_index/1"),
    ]
    assert close(exported.answer(image=images), inferred(trained, images), rtol=1e-4)


@pytest.mark.parametrize("part", ["both", "module"])
def test_partitioned_arrays_are_its_params(export, trained, images, part):
    """The arrays that `eqx.partition` separated are combined again; a state may be passed beside the module."""
    changed = jax.tree.map(lambda a: a * 1.5 if eqx.is_inexact_array(a) else a, trained[0])
    arrays, rest = eqx.partition((changed, trained[1]), eqx.is_array)
    model, params = (rest, arrays) if part == "both" else (trained, arrays[0])

    exported = export(model, params, inputs=[IMAGE])

    expected = inferred((changed, trained[1]), images)
    assert close(exported.answer(image=images), expected, rtol=1e-4)


@pytest.mark.parametrize("header", [b"", json.dumps({"size": 8}).encode() + b"\n"])
def test_a_file_of_leaves_is_read(export, trained, images, tmp_path, header):
    """An `.eqx` file has the arrays of a class that is made without any, behind a line of JSON or not."""
    with (tmp_path / "model.eqx").open("wb") as file:
        file.write(header)
        eqx.tree_serialise_leaves(file, trained)

    exported = export(Net, tmp_path / "model.eqx", inputs=[IMAGE])

    assert close(exported.answer(image=images), inferred(trained, images), rtol=1e-4)


def test_a_file_of_other_leaves_is_refused(refusal, tmp_path):
    """The refusal contains Equinox's own message, in one line."""
    other = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))
    eqx.tree_serialise_leaves(tmp_path / "other.eqx", other)

    assert refusal(MLP, tmp_path / "other.eqx", kind=ParamsError) == (
        "params other.eqx: expected those of MLP, got: Deserialised leaf at path "
        "(GetAttrKey(name='layers'), SequenceKey(idx=1), GetAttrKey(name='weight')) has changed shape "
        "from (2, 8) in `like` to (8, 8) on disk."
    )


def test_a_file_with_more_in_it_is_refused(refusal, tmp_path):
    """Leaves that would be left over are a sign of another model."""
    eqx.tree_serialise_leaves(tmp_path / "two.eqx", (LINEAR, LINEAR))

    assert refusal(LINEAR, tmp_path / "two.eqx", kind=ParamsError) == (
        "params two.eqx: expected those of Linear, got 288 bytes more; was it saved with a state, or "
        "with more layers?"
    )


@pytest.mark.parametrize("data", [b"no leaves", b'{"size": 8}\nno leaves'])
def test_a_file_of_no_leaves_is_refused(refusal, tmp_path, data):
    """NumPy's advice to allow pickles is not repeated."""
    (tmp_path / "net.eqx").write_bytes(data)

    assert refusal(LINEAR, tmp_path / "net.eqx", kind=ParamsError) == (
        "params net.eqx: expected those of Linear, got: no file of eqx.tree_serialise_leaves"
    )


def test_a_file_with_less_in_it_is_refused(refusal, trained, tmp_path):
    """A state that was not saved beside its module is a likely reason."""
    eqx.tree_serialise_leaves(tmp_path / "net.eqx", trained[0])
    (tmp_path / "empty.eqx").write_bytes(b"")

    assert refusal(trained, tmp_path / "net.eqx", inputs=[IMAGE], kind=ParamsError) == (
        "params net.eqx: expected those of Net, got: fewer arrays; was it saved of a smaller model, or "
        "without its state, (model, state)?"
    )
    assert refusal(LINEAR, tmp_path / "empty.eqx", kind=ParamsError) == (
        "params empty.eqx: expected those of Linear, got: fewer arrays; was it saved of a smaller model?"
    )


def test_a_class_takes_a_module_as_its_params(export, trained, images):
    """A class or a factory is none that takes the module as its argument."""
    for factory in (Net, lambda key: Net(key)):  # noqa: PLW0108 (a factory of the user's)
        exported = export(factory, trained, inputs=[IMAGE])

        assert close(exported.answer(image=images), inferred(trained, images), rtol=1e-4)


def test_a_class_that_needs_a_configuration_is_refused(refusal):
    """What it takes is named, whatever the params are."""

    class Sized(eqx.Module):
        linear: eqx.nn.Linear

        def __init__(self, size, key):
            self.linear = eqx.nn.Linear(3, size, key=key)

    assert refusal(Sized, LINEAR) == (
        "Sized: expected values for size, got none; pass --config FILE.json"
    )


def test_half_of_a_partition_is_refused(refusal):
    """The message names what the other half has to be passed as."""
    params, static = eqx.partition(LINEAR, eqx.is_array)

    assert refusal(static, kind=ParamsError) == (
        "params: expected the weights of the Equinox Module, got none; pass --params; of eqx.partition "
        "pass both parts, as model and params"
    )
    assert refusal((params, static)) == (
        "model: expected an Equinox Module, or a tuple of one and its State, got a tuple of Linear, "
        "Linear; the two parts of eqx.partition go as model and params"
    )


def test_a_function_that_wraps_a_module_is_refused(refusal):
    """The module is what is exported: its rows are mapped over by the exporter."""
    assert refusal(jax.vmap(LINEAR)) == (
        "model: expected the Linear of equinox itself, got a function that wraps it, such as jax.vmap "
        "makes; pass what it wraps"
    )
    assert refusal(lambda x: jax.vmap(LINEAR)(x) * 2) == (
        "model: expected a function apply(params, inputs), got one of (x); pass LINEAR, the model of "
        "equinox that it uses"
    )


def test_leaves_are_taken_by_name(export, refusal, rows):
    """A checkpoint of another form has the names of the fields, and all of them."""
    params = {"weight": np.asarray(LINEAR.weight) * 2, "bias": np.asarray(LINEAR.bias)}

    exported = export(LINEAR, params)

    assert close(exported.answer(x=rows), rows @ params["weight"].T + params["bias"])
    del params["bias"]
    assert refusal(LINEAR, params) == "params do not fit the model: missing bias float32[2]"


def test_a_module_of_all_rows_is_called_with_them(export, rows):
    """A module that maps over rows itself is recognized by trying, and the report notes it."""
    exported = export(Batched(LINEAR))

    assert exported.report.notes == (
        "Batched is called with all rows, since it cannot be traced with one",
    )
    assert close(exported.answer(x=rows), jax.vmap(LINEAR)(rows))


def test_a_module_that_takes_both_and_differs_is_refused(refusal):
    """Which of the two was meant, nothing shows."""
    assert refusal(OwnMean(jnp.ones(3))) == (
        "OwnMean: expected a module that takes one row, or all rows, got one that takes both and "
        "answers differently; export a function that calls it as you mean it: def apply(model, x): "
        "return jax.vmap(model)(x), with the module as params"
    )


def test_a_function_of_a_module_takes_it_as_params(export, rows):
    """What else a module holds than arrays stays with the function."""
    exported = export(lambda model, x: jax.vmap(model)(x) * 2, MLP)

    assert close(exported.answer(x=rows), 2 * jax.vmap(MLP)(rows))


def test_a_jitted_function_is_taken_as_it_is(export, rows):
    """What `eqx.filter_jit` returns is a Module, and no model."""
    exported = export(eqx.filter_jit(lambda model, x: jax.vmap(model)(x)), LINEAR)

    assert close(exported.answer(x=rows), jax.vmap(LINEAR)(rows))


def test_a_square_module_takes_a_row(export, rows):
    """As many rows as a row has elements could pass for one, and are not tried."""
    square = eqx.nn.Linear(3, 3, key=jax.random.key(5))

    assert close(export(square).answer(x=rows), jax.vmap(square)(rows))


def test_inputs_go_by_name_or_place(plan):
    """They are never sorted: by their names where the module has these, else in their order."""

    class Two(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, a, b):
            return self.linear(a) - b

    for inputs in (["b:float32[_,2]", "a:float32[_,3]"], ["q:float32[_,3]", "p:float32[_,2]"]):
        assert list(plan(Two(LINEAR), inputs=inputs).params) == ["linear/weight", "linear/bias"]


def test_noise_that_is_still_on_is_refused(refusal):
    """An answer that depends on the key is none; the switch is named."""
    assert refusal(Noisy(LINEAR)) == (
        "Noisy: the model asks for a `key` key: is it still in training mode? training=True of Noisy: "
        "make it with training=False; only if it samples on purpose: pin one by exporting a function: "
        "def apply(model, x): return jax.vmap(lambda row: model(row, key=jax.random.key(0)))(x), with "
        "the module as params"
    )


def test_a_key_that_nothing_is_drawn_from_is_passed(export, rows):
    """A module that has to be passed a key gets one, since no answer depends on it."""
    exported = export(Noisy(LINEAR, training=False))

    assert close(exported.answer(x=rows), jax.vmap(LINEAR)(rows))


def test_a_state_that_each_call_changes_is_refused(refusal):
    """A program keeps nothing between calls."""
    assert refusal(eqx.nn.make_with_state(Counting)()) == (
        "Counting: expected inference to leave its state alone, got state/count changed; is it still "
        "in training mode? A program keeps nothing between calls: what has to be kept, take as an "
        "input and return"
    )


def test_a_module_without_its_state_is_refused(refusal, trained):
    """What it lacks is named, and where it is from."""
    assert refusal(trained[0], inputs=[IMAGE]) == (
        "model: expected (model, state), as eqx.nn.make_with_state returns them, got a Net alone, "
        "whose state has Net.norm.batch_counter, Net.norm.batch_state_index"
    )


def test_a_class_without_weights_is_refused(refusal):
    """Random weights are never exported."""
    assert refusal(Net, inputs=[IMAGE]) == (
        "params: expected the weights of the Equinox Module, got none; pass --params, or a trained "
        "module in place of Net"
    )


def test_arrays_that_are_missing_are_named(refusal):
    """A module that was made without weights needs each of them."""
    model = eqx.filter_eval_shape(lambda: LINEAR)
    params = eqx.filter(LINEAR, lambda leaf: eqx.is_array(leaf) and leaf.ndim > 1)

    assert refusal(model, params) == "params do not fit the model: missing bias"


def test_params_of_another_tree_are_refused(refusal):
    """Arrays of another module are no params of this one."""
    assert refusal(LINEAR, eqx.filter(MLP, eqx.is_array)).startswith(
        "params: expected the arrays of Linear as eqx.partition returns them, got another tree: "
    )


def test_statistics_keep_their_dtype(plan, trained):
    """A cast is of what training moves, and of no statistics."""

    def answer(model, x):
        net, state = model
        return jax.vmap(net, in_axes=(0, None))(x.astype(net.conv.weight.dtype), state)[0]

    made = plan(
        answer,
        (eqx.nn.inference_mode(trained[0]), trained[1]),
        inputs=[IMAGE],
        dtype="bfloat16",
    )

    kept = {n for n, a in made.params.items() if a.dtype == np.float32}
    assert kept == {"state/norm/batch_state_index/0", "state/norm/batch_state_index/1"}
