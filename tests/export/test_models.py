"""Models of every kind answer from the bundle as they do in Flax."""

import collections
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen, nnx

X = "x:float32[_,3]"


def close(got, expected, rtol=1e-5, atol=1e-6):
    """Compare answers; true, so that it can be asserted."""
    np.testing.assert_allclose(got, np.asarray(expected), rtol=rtol, atol=atol)
    return True


class Noisy(linen.Module):
    """Dropout and batch statistics, in training mode unless told otherwise."""

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
    """What the message says to export is exported, and answers as the model with that key."""
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
    """What the message says to export is exported, and answers as the model did first."""
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


Pair = collections.namedtuple("Pair", ["total", "half"])  # noqa: PYI024

OUTPUTS = {
    "array": (lambda x: x, {"output": X}),
    "tuple": (lambda x: (x, -x), {"output_0": X, "output_1": X}),
    "list": (lambda x: [x, -x], {"output_0": X, "output_1": X}),
    "namedtuple": (lambda x: Pair(x, -x), {"total": X, "half": X}),
    "dict": (lambda x: {"b": x, "a": -x}, {"a": X, "b": X}),
    "nested": (
        lambda x: {"pair": Pair(x, (x, None)), "last": [x]},
        {"last.0": X, "pair.total": X, "pair.half.0": X},
    ),
    "scalar per row": (lambda x: x.sum(1), {"output": "float32[_]"}),
    "no columns": (lambda x: x[:, :0], {"output": "float32[_, 0]"}),
}


@pytest.mark.parametrize("form", OUTPUTS)
def test_outputs_of_every_form_have_names(plan, form):
    """Arrays, tuples, NamedTuples, dicts and nests of them become named outputs."""
    function, names = OUTPUTS[form]
    made = plan(lambda _params, x: function(x))
    expected = {
        name: spec.removeprefix("x:").replace(",", ", ").replace("  ", " ")
        for name, spec in names.items()
    }
    assert {o.name: str(o) for o in made.signature.outputs} == expected


def test_named_outputs_survive_the_bundle(export, rows):
    """Each output comes back under its name, row for row."""

    def apply(params, x):
        return {"pair": Pair(x * params, x.sum(1)), "same": (x,)}

    made = export(apply, np.float32(2))
    got = made.predict(x=rows)

    assert list(got) == ["pair.total", "pair.half", "same.0"]
    assert close(got["pair.total"], rows * 2)
    assert close(got["pair.half"], rows.sum(1))
    assert got["same.0"].tobytes() == rows.tobytes()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _: None, "outputs: expected at least one array, got none"),
        (lambda _: {}, "outputs: expected at least one array, got none"),
        (
            lambda x: {"scores": x, "label": "cat"},
            (
                "output 'label': expected an array, got str; return arrays, or tuples, NamedTuples, "
                "dicts or flax.struct dataclasses of them"
            ),
        ),
        (
            lambda x: {"a.b": x, "a": {"b": x}},
            "outputs: expected different names, got 'a.b' twice",
        ),
        (
            lambda x: (x, x.mean()),
            (
                "output 'output_1': expected the batch as its leading axis, got [] for 1 rows and [] "
                "for 2 rows; return one row of output for each row of input"
            ),
        ),
        (
            lambda x: x.T,
            (
                "output 'output': expected the batch as its leading axis, got [3, 1] for 1 rows and "
                "[3, 2] for 2 rows; return one row of output for each row of input"
            ),
        ),
        (
            lambda x: x.reshape(-1),
            (
                "output 'output': expected the batch as its leading axis, got [3] for 1 rows and [6] "
                "for 2 rows; return one row of output for each row of input"
            ),
        ),
        (
            lambda x: x @ x.T,
            (
                "output 'output': expected axis 1 to be fixed or one of none, got [1, 1], [2, 2], "
                "[4, 4] in different buckets"
            ),
        ),
    ],
    ids=["none", "empty", "text", "twice", "mean", "transposed", "flattened", "square"],
)
def test_outputs_that_are_not_rows_are_refused(refusal, function, message):
    """An output that is not one row for each row of input is refused by name."""
    assert refusal(lambda _params, x: function(x)) == message


def test_an_output_is_told_from_the_batch_by_another_size(refusal):
    """With one bucket the leading axis is still found out: a constant one is refused."""
    table = np.ones((4, 2), np.float32)
    message = refusal(lambda params, x: params + 0 * x.sum(), table, buckets=(4,))
    assert message.startswith("output 'output': expected the batch as its leading axis, got [4, 2]")


DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"),
]
WIDE = ["int64", "uint64", "float64"]


def samples(dtype, shape):
    """Draw values that a dtype keeps."""
    drawn = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 7, shape)
    return drawn.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def combined(params, **inputs):
    """Use each param with the input of its dtype; nothing changes a dtype."""

    def one(name):
        a, b = inputs[name], params[name]
        if name == "bool":
            return a ^ b
        return a + b if jnp.issubdtype(a.dtype, jnp.integer) else a * b

    return {name: one(name) for name in inputs}


@pytest.mark.parametrize(
    ("dtypes", "x64"), [(DTYPES, False), (DTYPES + WIDE, True)], ids=["32-bit", "64-bit"]
)
def test_every_dtype_goes_in_through_and_out(export, dtypes, x64):
    """Inputs, params and outputs keep their dtypes, 64-bit ones with 64-bit mode recorded."""
    params = {name: samples(name, (3,)) for name in dtypes}
    inputs = {name: samples(name, (5, 3)) for name in dtypes}
    made = export(combined, params, inputs=[f"{name}:{name}[_,3]" for name in dtypes])
    got = made.predict(**inputs)

    assert made.manifest.x64 is x64
    assert {e.name: e.dtype for e in made.manifest.params.entries} == {n: n for n in dtypes}
    assert {o.name: o.dtype for o in made.manifest.signature.outputs} == {n: n for n in dtypes}
    with jax.enable_x64(x64):
        for name, value in combined(params, **inputs).items():
            assert got[name].dtype.name == name
            assert got[name].tobytes() == np.asarray(value).tobytes()


def test_64_bit_values_are_not_narrowed(export):
    """An int64 that 32 bits cannot hold comes through, and the note says what was avoided."""
    made = export(
        lambda params, x: x + params,
        np.int64(2**40),
        inputs=["x:int64[_,1]"],
    )

    assert made.answer(x=np.array([[5], [2**41]])).tolist() == [[2**40 + 5], [2**40 + 2**41]]
    assert made.report.notes == (
        (
            "64-bit types are on for 'x' (int64); 32-bit mode would have turned them into int32, "
            "and so it would the outputs 'output' (int64)"
        ),
    )


def test_outputs_that_a_64_bit_input_widens_are_named(plan):
    """An int64 input makes other values 64 bits wide as well: the outputs that are, are said."""

    def apply(_params, ids, x):
        mean = jnp.zeros(3).sum() + x.astype(float)  # both are float64 in 64-bit mode
        return {"mean": mean, "same": x * 2.5, "count": (x > 0).sum(1), "small": ids.astype("int8")}

    (note,) = plan(apply, inputs=["ids:int64[_,3]", "x:float32[_,3]"]).notes
    assert note == (
        "64-bit types are on for 'ids' (int64); 32-bit mode would have turned them into int32, and "
        "so it would the outputs 'count' (int64), 'mean' (float64)"
    )
    (quiet,) = plan(lambda _params, ids: ids > 0, inputs=["ids:uint64[_,3]"]).notes
    assert quiet == (
        "64-bit types are on for 'ids' (uint64); 32-bit mode would have turned them into uint32"
    )


def test_64_bit_params_become_what_jax_makes_of_them(plan):
    """In 32-bit mode float64 params become float32, as in the model, and it is said."""
    made = plan(lambda params, x: x * params["w"], {"w": np.arange(3.0)})

    assert [e.dtype for e in made.packing.entries] == ["float32"]
    assert made.notes == ("64-bit params become 32-bit ones, as JAX makes them in 32-bit mode: w",)


def test_64_bit_params_that_do_not_fit_are_refused(refusal):
    """An int64 param beyond int32 is refused rather than wrapped."""
    message = refusal(lambda params, x: x + params["n"], {"n": np.int64([2**40])})
    assert message == (
        "params: 'n': expected values that fit int32, got int64 beyond it; export with "
        "JAX_ENABLE_X64=1"
    )


class TwoInputs(linen.Module):
    """Takes two inputs by name or place."""

    @linen.compact
    def __call__(self, ids, scale):
        return linen.Embed(10, 4)(ids).sum(1) * scale


@pytest.mark.parametrize(
    "names", [("ids", "scale"), ("scale", "ids"), ("tokens", "factor")], ids="-".join
)
def test_several_inputs_go_by_name_or_by_place(plan, names):
    """Inputs with the model's names may come in any order; other names go by place."""
    specs = {"ids": "int32[_,5]", "tokens": "int32[_,5]"}
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    scale = np.ones((2, 4), np.float32)
    model = TwoInputs()
    variables = model.init(jax.random.key(0), ids, scale)
    made = plan(model, variables, inputs=[f"{n}:{specs.get(n, 'float32[_,4]')}" for n in names])

    by_name = dict(zip(names, made.goldens[0][1], strict=True))
    ids, scale = (
        by_name.get(a, by_name.get(b)) for a, b in (("ids", "tokens"), ("scale", "factor"))
    )
    assert close(made.goldens[0][2][0], model.apply(variables, ids, scale))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("idz", "scale"),
            "inputs: expected ids, scale as the model has them, got idz, scale; did you mean 'ids'?",
        ),
        (
            ("ids",),
            (
                "inputs: expected ids, scale as the model has them, got ids; what is no input, pass "
                "in a function apply(params, …) that calls the model"
            ),
        ),
        (
            ("a", "b", "c"),
            "inputs: expected ids, scale as the model has them, got a, b, c",
        ),
    ],
)
def test_inputs_that_only_partly_fit_are_refused(refusal, names, message):
    """Some names right and some wrong would be a guess: it is refused, with the nearest."""
    variables = TwoInputs().init(
        jax.random.key(0), np.zeros((1, 5), np.int32), np.ones((1, 4), np.float32)
    )
    assert refusal(TwoInputs(), variables, inputs=[f"{n}:int32[_,5]" for n in names]) == message


def test_keyword_and_variadic_models_get_their_inputs(plan):
    """Models that take any keywords get names, and those that take any places get places."""
    inputs = ["a:float32[_,3]", "b:float32[_,3]"]

    def keywords(_params, **given):
        return given["a"] - given["b"]

    def places(_params, *given):
        return given[0] - given[1]

    for function in (keywords, places):
        made = plan(function, inputs=inputs)
        a, b = made.goldens[0][1]
        assert close(made.goldens[0][2][0], a - b)


def test_containers_get_their_input_by_place(plan):
    """Modules that pass on whatever they get, such as Sequential, get places."""
    parts = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    made = plan(parts)
    parts.eval()
    assert close(made.goldens[0][2][0], parts(made.goldens[0][1][0]))


def test_functions_infer(plan):
    """A plain function with an argument that switches training is called for inference."""

    def apply(_params, x, train=True, scale=2.0):
        return x * (0 if train else scale)

    def apply_dict(_params, inputs, *, deterministic=False, scale=2.0):
        return inputs["x"] * (scale if deterministic else 0)

    for function in (apply, apply_dict):
        made = plan(function)
        assert close(made.goldens[0][2][0], made.goldens[0][1][0] * 2)


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        (lambda x: x, None, "model: expected a function apply(params, inputs), got one of (x)"),
        (
            lambda _params, x: x * 1j,
            None,
            (
                "output 'output': expected a dtype of bool, int8, int16, int32, int64, uint8, uint16, "
                "uint32, uint64, float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2, got "
                "complex64"
            ),
        ),
        (
            lambda _params, x: x,
            {"when": np.zeros(3, "datetime64[s]")},
            (
                "params: 'when': expected a dtype of bool, int8, int16, int32, int64, uint8, uint16, "
                "uint32, uint64, float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2, "
                "complex64, complex128, int2, int4, uint2, uint4, float8_e3m4, float8_e4m3, "
                "float8_e4m3b11fnuz, float8_e4m3fnuz, float8_e5m2fnuz, float8_e8m0fnu, got "
                "datetime64[s]"
            ),
        ),
        (
            lambda _params, x: x,
            {"key": jax.random.key(0)},
            "params: 'key': expected an array of numbers, got a random key",
        ),
    ],
    ids=["one argument", "complex output", "dates", "key"],
)
def test_what_a_bundle_cannot_hold_is_refused(refusal, model, params, message):
    """Functions of one argument, and arrays that no bundle has, are refused by name."""
    assert refusal(model, params) == message


def test_odd_arrays_are_kept_as_they_are(export):
    """Empty, transposed, scalar and boxed params come through."""

    class Boxed(linen.Module):
        """Has a param with a partitioning."""

        @linen.compact
        def __call__(self, x):
            boxed = linen.with_partitioning(linen.initializers.ones, (None, "model"))
            return linen.Dense(2, kernel_init=boxed)(x)

    x = np.ones((2, 3), np.float32)
    params = {
        "empty": np.ones((0, 3), np.float32),
        "transposed": np.arange(9, dtype=np.float32).reshape(3, 3).T,
        "number": 2.0,
        "none": None,
        "ein Name mit Lücken": np.arange(3, dtype=np.float32),
    }

    def apply(p, x):
        return p["number"] * x @ p["transposed"] + p["empty"].sum() + p["ein Name mit Lücken"]

    assert close(export(apply, params).answer(x=x), apply(params, x))
    variables = Boxed().init(jax.random.key(0), x)
    assert close(export(Boxed(), variables).answer(x=x), np.full((2, 2), 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            linen.Conv(2, (3, 3)),
            "the model cannot be traced: ",
        ),
        (
            lambda params, x: x @ params["kernel"],
            "the model cannot be traced: KeyError: 'kernel'",
        ),
        (
            lambda _params, x: x if x.sum() > 0 else -x,
            (
                "the model cannot be traced: TracerBoolConversionError: Attempted boolean conversion "
                "of traced array with shape bool[]."
            ),
        ),
        (
            lambda _params, x: x @ np.ones((5, 2)),
            (
                "the model cannot be traced: TypeError: dot_general requires contracting dimensions to "
                "have the same shape, got (3,) and (5,)."
            ),
        ),
        (
            lambda _params, x: x if isinstance(x, jax.core.Tracer) else 1 / 0,
            "the model cannot be run op by op: ZeroDivisionError: division by zero",
        ),
    ],
    ids=["linen", "key", "branch", "shape", "untraced"],
)
def test_a_model_that_fails_is_one_line(refusal, model, message):
    """Whatever a model raises is one line with the kind of error and what it says."""
    assert refusal(model, {"params": {"w": np.ones(3, np.float32)}}).startswith(message)


def test_a_models_own_line_is_named(refusal):
    """What goes wrong deep inside of Flax is told with the line of the model that led there."""

    def deep(_params, x):
        return linen.Conv(2, (3, 3)).apply({}, x)

    line = deep.__code__.co_firstlineno + 1
    assert refusal(deep).endswith(f" (test_models.py, line {line})")
