"""One model's weights in each of the forms that training, and those who publish, leave them in."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as orbax_v1
import pytest
from flax import linen, nnx, serialization, traverse_util
from flax.training import orbax_utils, train_state
from safetensors.numpy import save_file

from export import ParamsError
from export.forms import alternatives, nested, unboxed
from export.matching import aligned

X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


class Tagged(flax.struct.PyTreeNode, linen.meta.AxisMetadata):
    """A box of a user's own, whose array is not called `value`."""

    array: Any
    tag: str = flax.struct.field(pytree_node=False, default="")

    def unbox(self):
        """Return the array."""
        return self.array

    def replace_boxed(self, val):
        """Put another in."""
        return self.replace(array=val)

    def add_axis(self, _index, _params):
        """Leave it as it is."""
        return self

    def remove_axis(self, _index, _params):
        """Leave it as it is."""
        return self


class Boxes(linen.Module):
    """Has boxed params of three kinds, an unboxed one called `value`, and statistics."""

    @linen.compact
    def __call__(self, x, train: bool = False):
        init = linen.initializers.lecun_normal()
        x = linen.Dense(3, kernel_init=linen.with_partitioning(init, (None, "model")))(x)
        x = linen.Dense(2, kernel_init=linen.with_logical_partitioning(init, ("in", "out")))(x)
        x = x * self.param("tagged", lambda key: Tagged(jax.random.normal(key, (2,)), "t"))
        x = x + self.param("value", linen.initializers.normal(), (2,))
        return linen.BatchNorm(use_running_average=not train)(x)


class State(train_state.TrainState):
    """A TrainState with statistics."""

    batch_stats: Any


@pytest.fixture(scope="module")
def variables():
    """Variables of Boxes, boxed."""
    return Boxes().init(jax.random.key(0), X)


@pytest.fixture(scope="module")
def state(variables):
    """A TrainState of Boxes, boxed."""
    return State.create(
        apply_fn=Boxes().apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=optax.adam(1e-3),
    )


def in_memory(_path, tree):
    """Save nothing."""
    return tree


def msgpack(path, tree):
    """Save as Flax does."""
    path.write_bytes(serialization.to_bytes(tree))
    return path


def standard(path, tree):
    """Save with Orbax."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def pytree(path, tree):
    """Save as Flax's guide did."""
    ocp.PyTreeCheckpointer().save(path, tree, save_args=orbax_utils.save_args_from_target(tree))
    return path


def zarr(path, tree):
    """Save each array in files of its own."""
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    return path


def step(path, tree):
    """Save as a step."""
    with ocp.CheckpointManager(path) as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
    return path


def item(path, tree):
    """Save as one item of a step."""
    with ocp.CheckpointManager(path) as manager:
        items = {"state": ocp.args.StandardSave(tree), "data": ocp.args.JsonSave({"at": 7})}
        manager.save(3, args=ocp.args.Composite(**items))
    return path


def newest(path, tree):
    """Save with Orbax's next API."""
    orbax_v1.save(path, tree)
    return path


SAVES = [in_memory, msgpack, standard, pytree, zarr, step, item, newest]


@pytest.mark.parametrize("of", ["variables", "state"])
@pytest.mark.parametrize("save", SAVES)
def test_boxed_params_are_read_from_every_form(tmp_path, plan, request, variables, save, of):
    """Params with axis metadata are found, in memory or saved, alone or in a TrainState."""
    made = plan(Boxes(), save(tmp_path / "c", request.getfixturevalue(of)))

    assert "params/value" in {entry.name for entry in made.packing.entries}
    x = made.goldens[0][1][0]
    np.testing.assert_allclose(made.goldens[0][2][0], Boxes().apply(variables, x), rtol=1e-5)


@pytest.mark.parametrize("separator", [".", "/", None])
def test_flat_names_are_those_of_the_model(plan, variables, separator):
    """Names joined by dots, slashes or in tuples, whole or below a collection, fit a model."""
    plain = linen.meta.unbox(variables)
    flat = traverse_util.flatten_dict(plain, sep=separator)
    inner = {name: traverse_util.flatten_dict(tree, sep=separator) for name, tree in plain.items()}
    for tree in (flat, inner):
        made = plan(Boxes(), tree)
        x = made.goldens[0][1][0]
        np.testing.assert_allclose(made.goldens[0][2][0], Boxes().apply(variables, x), rtol=1e-5)


class Sharded(nnx.Module):
    """An nnx Module whose params have sharding metadata."""

    def __init__(self, rngs: nnx.Rngs):
        """Make one layer."""
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        self.linear = nnx.Linear(3, 2, kernel_init=init, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


@pytest.mark.parametrize("save", [in_memory, standard, step, item, newest])
def test_sharded_nnx_params_are_read(tmp_path, plan, save):
    """A State with sharding metadata fits its class, which no mesh is needed for."""
    with nnx.use_eager_sharding(False):
        model = Sharded(nnx.Rngs(1))
    state = nnx.state(model)
    for tree in (state, dict(nnx.to_flat_state(state))) if save is in_memory else (state,):
        made = plan(Sharded, save(tmp_path / "c", tree))
        np.testing.assert_allclose(made.goldens[0][2][0], model(made.goldens[0][1][0]), rtol=1e-5)


def affine(params, x):
    """A stand-in for any function of params."""
    return x @ params["dense"]["kernel"] + params["dense"]["bias"]


def affine_of_flat(params, x):
    """Read params by flat names."""
    return x @ params["dense.kernel"] + params["dense.bias"]


W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.float32([10, 20])
DENSE = {"dense": {"kernel": W, "bias": B}}


@pytest.mark.parametrize(
    ("function", "params"),
    [
        (affine, DENSE),
        (affine, {"dense": {"kernel": {"value": W}, "bias": B}}),
        (affine, {"dense": {"kernel": linen.Partitioned(W, (None, "m")), "bias": B}}),
        (affine, {"dense.kernel": W, "dense.bias": B}),
        (affine, {("dense", "kernel"): W, ("dense", "bias"): B}),
        (affine_of_flat, {"dense.kernel": W, "dense.bias": B}),
        (affine_of_flat, DENSE),
    ],
)
def test_a_function_gets_its_params_in_the_form_it_reads(plan, function, params):
    """Unboxed, nested or flat: the form with which the function traces is taken."""
    made = plan(function, params)
    np.testing.assert_allclose(made.goldens[0][2][0], made.goldens[0][1][0] @ W + B, rtol=1e-5)


def layers(params, x):
    """Read params that are a list of pairs."""
    for w, b in params:
        x = x @ w + b
    return x


@pytest.mark.parametrize("write", ["msgpack", "safetensors", "nested"])
def test_a_function_gets_lists_that_were_saved_as_mappings(tmp_path, plan, write):
    """A list of layers is restored as a list from a file that has its indices as names."""
    path = tmp_path / "params"
    params = {
        str(i): {"0": np.eye(3, dtype=np.float32), "1": np.float32([i, 0, 0])} for i in range(11)
    }
    if write == "msgpack":
        path.write_bytes(serialization.to_bytes([(p["0"], p["1"]) for p in params.values()]))
    elif write == "safetensors":
        save_file({f"{i}.{j}": a for i, p in params.items() for j, a in p.items()}, path)
    made = plan(layers, params if write == "nested" else path)

    np.testing.assert_allclose(made.goldens[0][2][0], made.goldens[0][1][0] + [55, 0, 0], rtol=1e-5)


class One(linen.Module):
    """A model of one layer that Flax names."""

    @linen.compact
    def __call__(self, x):
        """Score two classes."""
        return linen.Dense(2)(x)


@pytest.mark.parametrize("box", [lambda a: a, lambda a: {"value": a}])
def test_a_copy_of_the_params_beside_them_is_left_out(plan, box):
    """An average of the params by another name, without anything of a train state, is named."""
    params = {"Dense_0": {"kernel": W, "bias": B}}
    average = jax.tree.map(lambda array: box(2 * array), params)
    made = plan(One(), {"params": params, "ema_params": average})

    np.testing.assert_allclose(made.goldens[0][2][0], made.goldens[0][1][0] @ W + B, rtol=1e-5)
    (note,) = made.notes
    assert note.startswith("left out 2 params, on which no answer depends: ema_params/Dense_0/bias")


def test_a_switch_among_the_params_is_no_layer_that_the_model_lacks(plan):
    """A bool or a name beside a layer's arrays is left out and named, and blamed for nothing."""
    made = plan(
        linen.Dense(2), {"params": {"kernel": W, "bias": B, "trainable": True, "kind": "a"}}
    )
    assert made.notes == (
        "left out 2 params, on which no answer depends: params/kind, params/trainable",
    )


def test_a_param_called_value_is_no_box():
    """Leaf by leaf: what the model calls `value` stays, what it does not is a box."""
    expected = {("s", "value"): W, ("w",): W}
    assert aligned(expected, {("s", "value"): 1, ("w", "value"): 2}) == {
        ("s", "value"): 1,
        ("w",): 2,
    }
    assert aligned(expected, {("s", "value", "value"): 1}) == {("s", "value"): 1}
    assert aligned(expected, {("w",): 1, ("w", "value"): 2}) == {("w",): 1, ("w", "value"): 2}


def test_trees_change_form_without_loss():
    """Flat names spell a tree; where a name is also a folder that is refused."""
    assert nested({"a/b.c": 1, "d": 2}) == {"a": {"b.c": 1}, "d": 2}
    assert nested({"a.b": {"value": 1}}) == {"a": {"b": {"value": 1}}}
    assert unboxed({"a": [{"value": 1}, 2]}) == {"a": [1, 2]}
    assert list(alternatives({"a": {"b": 1}})) == [{"a/b": 1}, {"a.b": 1}]
    with pytest.raises(ValueError, match="'a/b' is there twice, or a part of its path is a param"):
        nested({"a": 1, "a.b": 2})


def test_strings_beside_params_do_not_keep_a_checkpoint_from_being_read(tmp_path, plan, refusal):
    """Flax's own guide saves {'model': state, 'config': …}: the part is named, and then taken."""
    model = linen.Dense(2)
    variables = model.init(jax.random.key(0), X)
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=optax.adam(1e-3)
    )
    guide = {"model": state, "config": {"sizes": np.array([1, 2]), "name": "d"}, "data": [X]}
    for save in (in_memory, msgpack, pytree):
        saved = save(tmp_path / save.__name__, guide)
        assert refusal(model, saved, kind=ParamsError) == (
            "params: expected those of the model alone, got config, data, model; the model's are "
            "under model: pass --params-path model"
        )
        for place in ("model", "model/params"):
            made = plan(model, saved, params_path=place)
            x = made.goldens[0][1][0]
            np.testing.assert_allclose(made.goldens[0][2][0], model.apply(variables, x), rtol=1e-5)


def test_jax_arrays_are_as_good_as_numpys(plan):
    """Boxed arrays of JAX fit as those of NumPy do."""
    made = plan(linen.Dense(2), {"kernel": {"value": jnp.asarray(W)}, "bias": jnp.asarray(B)})
    np.testing.assert_allclose(made.goldens[0][2][0], made.goldens[0][1][0] @ W + B, rtol=1e-5)


class OnAMesh(linen.Module):
    """Cannot be made here, and has a boxed kernel."""

    @linen.compact
    def __call__(self, x):
        if self.is_initializing() and jax.sharding.get_abstract_mesh().empty:
            raise RuntimeError("expected a mesh")
        ones = linen.initializers.ones
        return linen.Dense(2, kernel_init=linen.with_partitioning(ones, (None, "model")))(x)


def test_boxed_params_of_a_module_that_cannot_be_made_here(tmp_path, plan):
    """Where init wants a mesh, what was saved is taken out of its boxes if it fits only so."""
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        boxed = OnAMesh().init(jax.random.key(0), X)
    for save in (in_memory, msgpack):
        made = plan(OnAMesh(), save(tmp_path / save.__name__, boxed))
        _, (x,), (answer,) = made.goldens[0]
        np.testing.assert_allclose(answer, x.sum(1, keepdims=True).repeat(2, 1), rtol=1e-5)


class Headed(linen.Module):
    """Has a head that no answer depends on."""

    @linen.compact
    def __call__(self, x):
        linen.Dense(4, name="head")(x)
        return linen.Dense(2)(x)


def test_params_elsewhere_are_found_with_what_no_answer_reads(refusal):
    """A place in the tree is the model's where it has all that the model has, read or not."""
    saved = Headed().init(jax.random.key(0), X)["params"]
    for best in (saved, {"Dense_0": saved["Dense_0"]}):
        assert refusal(Headed(), {"best": best, "epoch": np.int32(3)}, kind=ParamsError) == (
            "params: expected those of the model alone, got best, epoch; the model's are under "
            "best: pass --params-path best"
        )
