"""Outputs of every form, and every dtype, in and out."""

import collections

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.export.models.test_flax import close

X = "x:float32[_,3]"


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
    """Each output is returned under its name, row for row."""

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


def test_an_output_is_distinguished_from_the_batch_by_another_size(refusal):
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
    """An int64 that 32 bits cannot hold is returned unchanged, and a note says that 64-bit mode is on."""
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
    """An int64 input makes other values 64 bits wide as well: such outputs are reported."""

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
    """In 32-bit mode float64 params become float32, as in the model, and a note says so."""
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
