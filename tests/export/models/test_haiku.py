"""What Haiku transforms is exported as it is, with a state or without."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from export import ParamsError
from tests.export.models.test_flax import close

IMAGE = "image:float32[_,8,8,1]"


def network(image, is_training):
    """Answer images: statistics, and dropout in training."""
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(image), is_training)
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(3)(hk.Flatten()(x))


def noisy(x, dropout=True):
    """Answer rows, with a switch whose name no library uses."""
    x = hk.Linear(3)(x)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if dropout else x


def counting(x):
    """Count calls."""
    count = hk.get_state("count", [], init=jnp.zeros)
    hk.set_state("count", count + 1)
    return hk.Linear(2)(x) + count


def one_layer(x):
    """Answer rows."""
    return hk.Linear(2)(x)


LINEAR = hk.transform(one_layer)


@pytest.fixture
def trained():
    """Params and state after a few batches."""
    net, image = (
        hk.transform_with_state(network),
        jax.random.normal(jax.random.key(1), (8, 8, 8, 1)),
    )
    params, state = net.init(jax.random.PRNGKey(0), image, True)
    for i in range(3):
        _, state = net.apply(params, state, jax.random.PRNGKey(i), image, True)
    return params, state


@pytest.fixture
def images():
    """Seven images, more than the largest bucket."""
    return np.random.default_rng(1).standard_normal((7, 8, 8, 1)).astype(np.float32)


@pytest.fixture
def linear(rows):
    """Params of LINEAR."""
    return LINEAR.init(jax.random.PRNGKey(0), rows)


def as_pair(params, state):
    """Return both as Haiku does."""
    return params, state


def as_mapping(params, state):
    """Return both by name."""
    return {"params": params, "state": state, "step": 3}


@pytest.mark.parametrize("form", [as_pair, as_mapping])
@pytest.mark.parametrize("keyed", [True, False], ids=["apply_rng", "without_apply_rng"])
def test_a_function_with_state_infers(export, trained, images, form, keyed):
    """Training is switched off by its argument, statistics come from the state, and names stay."""
    net = hk.transform_with_state(network)
    model = net if keyed else hk.without_apply_rng(net)

    exported = export(model, form(*trained), inputs=[IMAGE])

    assert {p.name for p in exported.manifest.params.entries} == {
        *("params/conv2_d/w", "params/conv2_d/b", "params/batch_norm/scale"),
        *("params/batch_norm/offset", "params/linear/w", "params/linear/b"),
        *("state/batch_norm/~/mean_ema/average", "state/batch_norm/~/var_ema/average"),
    }
    expected, _ = net.apply(*trained, None, images, False)
    assert close(exported.answer(image=images), expected, rtol=1e-4)


@pytest.mark.parametrize("model", [LINEAR, hk.without_apply_rng(LINEAR)])
@pytest.mark.parametrize("form", [lambda p: p, lambda p: {"params": p}])
def test_a_function_without_state_infers(export, linear, rows, model, form):
    """Its params are taken alone or under their name; both are called as Haiku calls them."""
    exported = export(model, form(linear))

    assert [p.name for p in exported.manifest.params.entries] == ["linear/b", "linear/w"]
    assert close(exported.answer(x=rows), LINEAR.apply(linear, None, rows))


def test_a_state_is_found_beside_the_params(export, trained, images):
    """`params_path` takes the params out of a train state, and the state with them."""
    tree = {"ema": {"params": trained[0], "state": trained[1]}, "opt_state": {"m": np.zeros(3)}}

    exported = export(
        hk.transform_with_state(network), tree, params_path="ema.params", inputs=[IMAGE]
    )

    expected, _ = hk.transform_with_state(network).apply(*trained, None, images, False)
    assert close(exported.answer(image=images), expected, rtol=1e-4)


def test_flat_names_are_read(export, trained, images, tmp_path):
    """Names with slashes in them are found in a file whose names are joined by slashes."""
    flat = {
        f"{part}/{module}/{name}": np.asarray(leaf)
        for part, tree in zip(("params", "state"), trained, strict=True)
        for module, leaves in tree.items()
        for name, leaf in leaves.items()
    }
    save_file(flat, tmp_path / "net.safetensors")

    exported = export(
        hk.transform_with_state(network), tmp_path / "net.safetensors", inputs=[IMAGE]
    )

    expected, _ = hk.transform_with_state(network).apply(*trained, None, images, False)
    assert close(exported.answer(image=images), expected, rtol=1e-4)


@pytest.mark.parametrize("keyed", [True, False])
def test_noise_that_is_still_on_is_refused(refusal, rows, keyed):
    """An answer that depends on a key is none; the switch is named."""
    model = hk.transform(noisy)
    params = model.init(jax.random.PRNGKey(0), rows)

    assert refusal(model if keyed else hk.without_apply_rng(model), params) == (
        "the Haiku function: the model asks for a `rng` key: is it still in training mode? "
        "dropout=True: try --call-arg dropout=False; only if it samples on purpose: pin one by "
        "exporting a function: def apply(params, x): return transformed.apply(params, "
        "jax.random.key(0), x)"
    )


def test_a_state_that_each_call_changes_is_refused(refusal, rows):
    """A program keeps nothing between calls."""
    model = hk.transform_with_state(counting)

    assert refusal(model, model.init(jax.random.PRNGKey(0), rows)) == (
        "the Haiku function: expected inference to leave its state alone, got state/~/count changed; "
        "is it still in training mode? A program keeps nothing between calls: what has to be kept, "
        "take as an input and return"
    )


def test_a_state_that_is_missing_is_named(refusal, trained):
    """Params alone are not enough for a function with statistics."""
    assert refusal(
        hk.transform_with_state(network), trained[0], inputs=[IMAGE], kind=ParamsError
    ) == (
        "params: expected (params, state), or both by these names, since hk.transform_with_state made "
        "the model, got params alone"
    )


def test_params_and_state_that_were_exchanged_are_recognised(refusal, trained):
    """`(state, params)` is refused with the order that Haiku returns them in."""
    text = refusal(
        hk.transform_with_state(network), trained[::-1], inputs=[IMAGE], kind=ParamsError
    )

    assert text == "params: expected (params, state), got them the other way round"


def test_params_of_another_shape_are_named(refusal, linear):
    """What init makes with the declared inputs is what is expected."""
    assert refusal(LINEAR, linear, inputs=["x:float32[_,4]"]).startswith(
        "params do not fit the model: mismatched linear/w: expected float32[4, 2], got float32[3, 2]"
    )


def test_a_function_without_params_is_refused(refusal):
    """A transformed function holds none."""
    assert refusal(LINEAR) == (
        "params: expected the weights of the Haiku function, which holds none, got none; pass --params"
    )


def test_several_functions_in_one_are_refused(refusal):
    """Which of them was meant, nothing shows."""
    model = hk.multi_transform(lambda: (jnp.sin, (jnp.sin, jnp.cos)))

    assert refusal(model, {}) == (
        "model: expected what hk.transform or hk.transform_with_state returns, got MultiTransformed; "
        "of hk.multi_transform pass one function, hk.TransformedWithState(model.init, "
        "model.apply.METHOD)"
    )


@pytest.mark.parametrize("transform", [hk.transform, hk.transform_with_state])
def test_apply_alone_is_refused_for_the_whole(refusal, linear, transform):
    """`transformed.apply` with its random key is refused with what to pass in its place."""
    assert refusal(transform(one_layer).apply, linear) == (
        "model: expected what hk.transform or hk.transform_with_state returns, got its apply, which takes "
        "a random key; pass that pair of init and apply"
    )


def test_weights_of_another_framework_are_refused(refusal, tmp_path):
    """A file in one framework's own format is refused for a model of another."""
    (tmp_path / "net.eqx").write_bytes(b"")

    assert refusal(LINEAR, tmp_path / "net.eqx", kind=ParamsError) == (
        "params net.eqx: expected a model of equinox, which saved them, got haiku"
    )
