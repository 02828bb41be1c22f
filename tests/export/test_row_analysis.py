"""Which functions are shown by their structure to answer each row from itself alone."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from pytest import mark, param

from export.row_analysis import why_not_independent
from runtime.rows import find_mixing
from runtime.signature import TensorSpec

X = np.zeros((8, 6), np.float32)
IDS = np.zeros((8, 4), np.int32)
ONE_ID = np.zeros(8, np.int32)
WEIGHTS = np.ones((6, 6), np.float32)
IMAGES = np.zeros((8, 5, 5, 3), np.float32)


def why_not(function, *inputs, params=()):
    """Analyse a function of params and inputs, whose batch is 8."""
    return why_not_independent(jax.make_jaxpr(function)(*params, *inputs), len(params))


class Classifier(nn.Module):
    """Convolution, normalization as inference does it, pooling and a dense layer."""

    training: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.swish(nn.BatchNorm(use_running_average=not self.training)(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = nn.avg_pool(nn.GroupNorm(2)(x), (2, 2))
        return nn.softmax(nn.Dense(3)(x.reshape(len(x), -1)))


class Reader(nn.Module):
    """Tokens, their places, masked attention, and a mean over the tokens."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(10, 6)(ids) + nn.Embed(4, 6)(jnp.arange(4))
        mask = nn.combine_masks(nn.make_causal_mask(ids), nn.make_attention_mask(ids > 0, ids > 0))
        x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(2)(x, mask=mask))
        return (x * (ids > 0)[..., None]).sum(1) / (ids > 0).sum(1, keepdims=True)


class Recurrent(nn.Module):
    """A cell that is scanned over the tokens, and one in a Python loop."""

    @nn.compact
    def __call__(self, ids):
        x = nn.RNN(nn.GRUCell(5))(nn.Embed(10, 3)(ids))
        cell = nn.OptimizedLSTMCell(4)
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        for step in range(2):
            carry, y = cell(carry, x[:, step])
        return y, x[:, -1]


def applied(module, example):
    """Turn a module into a function of its weights, one by one, and its inputs."""
    leaves, tree = jax.tree.flatten(module.init(jax.random.key(0), example))

    def function(*arguments):
        variables = jax.tree.unflatten(tree, arguments[: len(leaves)])
        mutable = ["batch_stats"] if getattr(module, "training", False) else False
        out = module.apply(variables, *arguments[len(leaves) :], mutable=mutable)
        return out[0] if mutable else out

    return function, leaves


@mark.parametrize(
    ("module", "example"),
    [(Classifier(), IMAGES), (Reader(), IDS), (Recurrent(), IDS)],
    ids=["convolutions", "attention", "recurrent"],
)
def test_ordinary_networks_are_proven(module, example):
    """Layers that work on each row are followed from the inputs to the outputs."""
    function, leaves = applied(module, example)

    assert why_not(function, example, params=leaves) is None


def test_batch_statistics_are_in_the_way():
    """Normalization as training does it reduces over the batch, and is named."""
    function, leaves = applied(Classifier(training=True), IMAGES)

    found = why_not(function, IMAGES, params=leaves)
    assert found is not None
    assert found.startswith("reduce_sum (test_row_analysis.py, line ")
    assert found.endswith("): it reduces over the batch")


@jax.custom_jvp
def doubled(x):
    """Have a derivative of its own."""
    return x * 2


doubled.defjvp(lambda primals, tangents: (doubled(*primals), doubled(*tangents)))

ROW_BY_ROW = {
    "a constant for each column": lambda x: x + np.arange(6, dtype=np.float32),
    "a constant that is alike for all rows": lambda x: x + np.ones((8, 6), np.float32),
    "a known array of equal rows": lambda x: x * np.tile(np.arange(6.0, dtype=np.float32), (8, 1)),
    "sort": lambda x: jnp.sort(x, 1),
    "cumulative sum": lambda x: jnp.cumsum(x, 1),
    "reversed columns": lambda x: x[:, ::-1],
    "rolled columns": lambda x: jnp.roll(x, 2, 1),
    "split and put together": lambda x: jnp.concatenate(jnp.split(x, 3, 1)[::-1], 1),
    "flattened and back": lambda x: (x.reshape(16, 3) * np.arange(3.0)).reshape(8, 6),
    "transposed and back": lambda x: (x.T[::-1] + np.ones((6, 1), np.float32)).T,
    "transposed, flattened and back": lambda x: jnp.tanh(x.T.reshape(48)).reshape(6, 8).T,
    "top": lambda x: lax.top_k(x, 2),
    "largest": lambda x: (x.argmax(1), x.max(1)),
    "fft": lambda x: jnp.fft.rfft(x, axis=1).real,
    "tiled columns": lambda x: jnp.tile(x, (1, 2)) * np.arange(12.0),
    "stacked and taken apart": lambda x: jnp.unstack(jnp.stack([x, -x], 1), axis=1)[1],
    "polynomials": lambda x: jnp.polyval(jnp.ones(3), x),
    "outer products": jax.vmap(lambda row: jnp.outer(row, row) / jnp.linalg.norm(row)),
    "dots of a row with itself": lambda x: jnp.einsum("bi,bi->b", x, x),
    "written columns": lambda x: x.at[:, 0].set(x[:, 1]).at[:, jnp.array([2, 3])].add(1),
    "padded columns": lambda x: jnp.pad(x, ((0, 0), (1, 2))),
    "slices at computed columns": lambda x: lax.dynamic_slice(x, (0, 2), (8, 3)),
    "written at a computed column": lambda x: lax.dynamic_update_slice(
        jnp.zeros((8, 9)), x, (0, 2)
    ),
    "chosen by each row": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "loop over columns": lambda x: lax.scan(lambda c, r: (c + r, c * 2), jnp.zeros(8), x.T)[1].T,
    "loop over rows": lambda x: lax.map(lambda row: jnp.cumsum(row) / row.sum(), x),
    "counted loop": lambda x: lax.fori_loop(0, 3, lambda i, c: c * i, x),
    "tested loop": lambda x: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x)
    )[1],
    "noise that is the same for all rows": lambda x: x + jax.random.normal(jax.random.key(0), (6,)),
    "derivatives": lambda x: doubled(x) + jax.nn.relu(x) + jax.checkpoint(jnp.sin)(x),
    "a gradient": jax.vmap(jax.grad(lambda row: jnp.tanh(row).sum())),
    "alike for all rows": lambda x: jnp.zeros((len(x), 2)),
    "an unused mean": lambda x: (x.mean(0), x)[1],
}


@mark.parametrize("name", ROW_BY_ROW)
def test_row_by_row_functions_are_proven(name):
    """What answers each row from itself alone, the same at each place, is proven."""
    assert why_not(ROW_BY_ROW[name], X) is None


def test_params_and_ids_are_followed():
    """Rows choose from a table, and meet weights."""
    assert why_not(lambda table, ids: table[ids].mean(1), IDS, params=[WEIGHTS]) is None
    assert why_not(lambda w, x: x @ w + w[0], X, params=[WEIGHTS]) is None
    assert why_not(lambda x, ids: jnp.where(ids[:, None] > 2, x, 0), X, ONE_ID) is None


CROSSING = {
    "mean": (lambda x: x - x.mean(0) * 1e-30, "reduce_sum", "it reduces over the batch"),
    "sort": (lambda x: jnp.sort(x, 0), "sort", "it sorts the batch"),
    "cumsum": (lambda x: jnp.cumsum(x, 0), "cumsum", "it sums up along the batch"),
    "attention": (lambda x: nn.softmax(x @ x.T) @ x, "dot_general", "rows meet other rows"),
    "pairs": (
        lambda x: jnp.tri(8) @ x,
        "dot_general",
        "it sums over the batch",
    ),
    "capacity": (
        lambda x: jnp.where((x[:, None, 0] == x[None, :, 0]).sum(1, keepdims=True) < 2, x, 0),
        "eq",
        "rows meet other rows",
    ),
    "place": (
        lambda x: x * jnp.arange(8.0)[:, None],
        "mul",
        "rows meet values that differ from place to place in the batch",
    ),
    "dropout": (
        lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape),
        "mul",
        "rows meet values that differ from place to place in the batch",
    ),
    "a known array": (
        lambda x: x + np.eye(8, 6, dtype=np.float32),
        "add",
        "rows meet values that differ from place to place in the batch",
    ),
    "reversed": (lambda x: x[::-1], "rev", "it reverses the batch"),
    "rolled": (
        lambda x: jnp.roll(x, 1, 0),
        "slice",
        "it takes some rows, or puts others beside them",
    ),
    "shifted": (
        lambda x: lax.pad(x, 0.0, ((1, -1, 0), (0, 0, 0))),
        "pad",
        "it takes some rows, or puts others beside them",
    ),
    "taken": (
        lambda x: x[jnp.array([1, 0, 3, 2, 5, 4, 7, 6])],
        "gather",
        "it takes rows by their place in the batch",
    ),
    "written": (lambda x: x.at[2].set(0), "scatter", "it writes at one place of the batch"),
    "collected": (
        lambda x: jnp.zeros((3, 6)).at[x[:, 0].astype(int)].add(x)[jnp.zeros(8, int)],
        "scatter-add",
        "rows are written to one place",
    ),
    "windows": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (3, 1), (1, 1), "SAME"),
        "reduce_window_sum",
        "its windows go over the batch",
    ),
    "channels": (
        lambda x: lax.conv(x[None], jnp.ones((8, 8, 3)), (1,), "SAME")[0],
        "conv_general_dilated",
        "it sums over the batch",
    ),
    "fft": (lambda x: jnp.fft.fft(x, axis=0).real, "fft", "it goes over the batch"),
    "a part of the batch": (
        lambda x: (x.reshape(2, 4, 6) - x.reshape(2, 4, 6).mean(1, keepdims=True)).reshape(8, 6),
        "reduce_sum",
        "the batch is spread over several axes",
    ),
    "tiled rows": (
        lambda x: jnp.tile(x, (2, 1))[::2],
        "slice",
        "it takes some rows, or puts others beside them",
    ),
    "a place that no probe looks at": (
        lambda x: x.at[1].add(x[2]),
        "slice",
        "it takes some rows, or puts others beside them",
    ),
    "flattened": (lambda x: x.reshape(-1)[::-1].reshape(8, 6), "rev", "it reverses the batch"),
    "loop over rows": (
        lambda x: lax.scan(lambda c, row: (c + row, c * 2), jnp.zeros(6), x)[1],
        "scan",
        "it carries something from row to row",
    ),
    "a test of all rows": (
        lambda x: lax.while_loop(lambda c: c.sum() < 3, lambda c: c * 2, x),
        "reduce_sum",
        "it reduces over the batch",
    ),
    "a branch of all rows": (
        lambda x: lax.cond(x.max() > 0, lambda y: y, lambda y: -y, x),
        "reduce_max",
        "it reduces over the batch",
    ),
    "a loop that mixes at its second step": (
        lambda x: lax.fori_loop(0, 3, lambda _, c: (c[1], c[1][::-1]), (x, x))[0],
        "rev",
        "it reverses the batch",
    ),
    "unknown": (
        jax.vmap(lambda row: lax.linalg.lu(jnp.outer(row, row))[0]),
        "lu",
        "nothing is known of its rows",
    ),
}


@mark.parametrize(
    ("function", "operation", "reason"), [param(*c, id=n) for n, c in CROSSING.items()]
)
def test_what_is_in_the_way_is_named(function, operation, reason):
    """Where a row may depend on another, or on its position, the first such operation is named."""
    found = why_not(function, X)

    assert found is not None
    assert (found.split(" (")[0].split(": ")[0], found.rpartition(": ")[2]) == (operation, reason)


@mark.parametrize(
    "function",
    [
        lambda x: x.T @ np.ones((8, 8)),
        lambda x: jnp.arange(float(len(x))),
        lambda x: x.T,
        lambda _: jnp.float32(1),
    ],
)
def test_outputs_have_the_batch_first(function):
    """Outputs without the batch as first axis, or that depend on the position, are not proven."""
    assert why_not(function, X) is not None


def test_the_users_own_line_is_named(tmp_path):
    """Where the operation is from a file of the user's, its line is in the reason."""
    code = compile("def model(x):\n    return x[::-1]\n", str(tmp_path / "net.py"), "exec")
    exec(code, found := {})  # noqa: S102 (a file of the user's)

    assert why_not(found["model"], X) == "rev (net.py, line 2): it reverses the batch"


STEPS = {
    "negate": lambda x: -x,
    "columns": lambda x: x * jnp.arange(6),
    "places": lambda x: x + jnp.arange(8)[:, None],
    "sort 0": lambda x: jnp.sort(x, 0),
    "sort 1": lambda x: jnp.sort(x, 1),
    "cumsum 0": lambda x: jnp.cumsum(x, 0),
    "cumsum 1": lambda x: jnp.cumsum(x, 1),
    "reverse 0": lambda x: x[::-1],
    "reverse 1": lambda x: x[:, ::-1],
    "roll 0": lambda x: jnp.roll(x, 3, 0),
    "roll 1": lambda x: jnp.roll(x, 3, 1),
    "less all": lambda x: x - x.sum(0),
    "less own": lambda x: x - x.sum(1, keepdims=True),
    "first": lambda x: x + x[0],
    "first column": lambda x: x + x[:, :1],
    "halves": lambda x: x.reshape(16, 3)[:, ::-1].reshape(8, 6),
    "pairs": lambda x: x.reshape(4, 12)[:, ::-1].reshape(8, 6),
    "transposed": lambda x: jnp.cumsum(x.T, 0).T,
    "folded": lambda x: jnp.cumsum(x.T.reshape(3, 16), 0).reshape(6, 8).T,
    "folded across": lambda x: jnp.cumsum(x.T.reshape(3, 16), 1).reshape(6, 8).T,
    "weights": lambda x: x @ jnp.arange(36).reshape(6, 6),
    "others": lambda x: x @ x.T @ x,
    "map": lambda x: lax.map(jnp.cumsum, x),
    "scan": lambda x: lax.scan(lambda c, row: (c + row, c), jnp.zeros(6, x.dtype), x)[1],
    "chosen": lambda x: jnp.take_along_axis(x, x % 6, 1),
    "chosen rows": lambda x: jnp.take_along_axis(x, x % 8, 0),
    "permuted": lambda x: x[:, jnp.array([2, 0, 1, 5, 3, 4])],
    "written": lambda x: x.at[:, 1].add(x[:, 0]),
    "written row": lambda x: x.at[4].add(x[0]),
    "where": lambda x: jnp.where(x > 3, x, 1),
    "any": lambda x: jnp.where((x > 8).any(), x, 1),
    "shifted": lambda x: jnp.pad(x[:-1], ((1, 0), (0, 0))),
    "loop": lambda x: lax.fori_loop(0, 2, lambda i, c: c * 2 + i, x),
}

NUMBERS = TensorSpec(name="x", dtype="int32", shape=("_", 6), minimum=0, maximum=9)
ROWS = np.random.default_rng(0).integers(0, 10, (8, 6), np.int32)


@mark.property
@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4))
def test_what_is_proven_passes_every_probe(names):
    """Where structure shows that rows are independent, no run shows that they are not."""

    def function(x):
        for name in names:
            x = STEPS[name](x)
        return x

    if why_not(function, ROWS) is None:
        run = jax.jit(function)
        found = find_mixing(lambda a: (np.asarray(run(*a)),), [NUMBERS], ["y"], (ROWS,), "b8")
        assert found == []


@mark.parametrize("name", STEPS)
def test_single_steps_are_proven_where_they_pass(name):
    """Each step alone is proven if every probe passes it, and otherwise is not."""
    run = jax.jit(STEPS[name])
    found = find_mixing(lambda a: (np.asarray(run(*a)),), [NUMBERS], ["y"], (ROWS,), "b8")

    assert (why_not(STEPS[name], ROWS) is None) == (found == [])
