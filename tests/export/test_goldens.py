"""Goldens: legal inputs, the un-exported model's answers, and how far a device may be off."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen, nnx
from safetensors.numpy import save_file

from export import ExportError, TensorSpec, export_model
from export.golden_inputs import golden_rows, seeded_inputs
from export.goldens import tolerance

IDS = TensorSpec(name="ids", dtype="int32", shape=("_", 6), minimum=3, maximum=49)


def affine(params, x):
    """A stand-in for any model."""
    return x @ params["w"] + params["b"]


def test_the_reference_is_finite_where_the_compiled_model_is_not(plan):
    """
    The bfloat16 convolutions that XLA's CPU compiler turns into NaN are run op by op, so
    their goldens are finite and near those of float32.
    """
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "one": jax.random.normal(keys[0], (3, 3, 3, 16)) / 5,
        "two": jax.random.normal(keys[1], (3, 3, 16, 16)) / 12,
    }
    dimensions = ("NHWC", "HWIO", "NHWC")

    def model(params, x):
        for name in ("one", "two"):
            weight = params[name].astype(x.dtype)
            x = jax.lax.conv_general_dilated(
                x, weight, (1, 1), "SAME", dimension_numbers=dimensions
            )
            x = jax.nn.relu(x)
        return x.mean((1, 2))

    made = plan(model, params, inputs=["x:bfloat16[_,16,16,3]"])
    (_, inputs, (expected,)) = made.goldens[0]

    assert expected.dtype == ml_dtypes.bfloat16
    assert np.isfinite(expected.astype(np.float32)).all()
    near = model(params, inputs[0].astype(np.float32))
    np.testing.assert_allclose(expected.astype(np.float32), near, rtol=0.1, atol=0.02)


def test_the_reference_is_not_traced(plan):
    """The model that answers goldens sees arrays, with jit switched off."""
    seen = []

    def model(_params, x):
        seen.append((isinstance(x, jax.core.Tracer), jax.config.jax_disable_jit))
        return x

    plan(model)
    assert seen[-1] == (False, True)


def test_goldens_are_the_models_own_answers(export):
    """What the bundle expects is what the un-exported model answers to its inputs."""
    params = {"w": np.ones((3, 2), np.float32), "b": np.arange(2, dtype=np.float32)}
    made = export(affine, params)
    (golden,) = made.manifest.goldens
    tensors = made.model.bundle.map(golden.file)

    assert sorted(tensors) == ["input/x", "output/output"]
    assert golden.rows == 4
    np.testing.assert_allclose(tensors["output/output"], affine(params, tensors["input/x"]))


def test_seeded_inputs_are_the_same_for_the_same_seed(plan):
    """Nothing but the seed decides the inputs."""

    def inputs(seed):
        return plan(lambda _params, x: x, seed=seed).goldens[0][1][0]

    np.testing.assert_array_equal(inputs(1), inputs(1))
    assert (inputs(1) != inputs(2)).all()


def test_seeded_inputs_are_legal():
    """Integers stay in their declared range and reach over all of it; masks are ones."""
    specs = [
        IDS,
        TensorSpec(name="mask", dtype="int8", shape=("_", "n"), mask=True),
        TensorSpec(name="bytes", dtype="uint8", shape=("_", 100)),
        TensorSpec(name="flags", dtype="bool", shape=("_", 100)),
        TensorSpec(name="wide", dtype="int64", shape=("_", 100)),
    ]
    drawn = seeded_inputs(specs, {"n": 5}, 50, seed=0)

    assert {name: (a.dtype.name, a.shape) for name, a in drawn.items()} == {
        "ids": ("int32", (50, 6)),
        "mask": ("int8", (50, 5)),
        "bytes": ("uint8", (50, 100)),
        "flags": ("bool", (50, 100)),
        "wide": ("int64", (50, 100)),
    }
    assert (drawn["ids"].min(), drawn["ids"].max()) == (3, 49)
    assert (drawn["mask"] == 1).all()
    assert (drawn["bytes"].min(), drawn["bytes"].max()) == (0, 255)
    assert set(np.unique(drawn["flags"])) == {False, True}
    assert (drawn["wide"].min(), drawn["wide"].max()) == (0, 9)


@pytest.mark.parametrize(
    ("shape", "most", "rows"),
    [(("_", 3), 4, 4), (("_", 3), 8, 8), (("_", 3), 500, 16), (("_", 10_000_000), 64, 4)],
)
def test_goldens_fill_a_bucket_within_a_size(shape, most, rows):
    """Seeded goldens have as many rows as fit 256 KiB, at least 4 and at most 16."""
    spec = TensorSpec(name="x", dtype="float32", shape=shape)
    assert golden_rows([spec], {}, most) == rows


def lookup(params, ids):
    """Average rows of a table, NaN for ids that it does not have."""
    return params.at[ids].get(mode="fill", fill_value=jnp.nan).mean(1)


def test_non_finite_goldens_name_the_range_that_is_missing(refusal):
    """NaN from ids out of range is refused, with the flag that declares the range."""
    table = np.ones((5, 2), np.float32)
    message = refusal(lookup, table, inputs=["ids:int32[_,6]"], buckets=(1,))

    assert message.startswith("golden: output 'output': expected finite values, got ")
    assert message.endswith(
        " of 8 that are not (the un-exported model, op by op); is a value of 'ids' out of range? "
        "pass --range ids=0:N"
    )


def test_a_range_beyond_the_model_is_suspected_before_the_goldens(refusal):
    """NaN of ids that are allowed and unknown is the range's; other goldens would only hide it."""
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", 6), minimum=0, maximum=99)
    message = refusal(lookup, np.ones((5, 2), np.float32), inputs=[ids], buckets=(1,))

    assert message.endswith(
        "; does the range 0:99 of 'ids' reach beyond what the model knows, as an embedding of fewer "
        "rows does? Then narrow it, --range ids=0:N"
    )


def test_a_declared_range_makes_goldens_finite(export):
    """The same model with its range is exported, and the range is enforced when serving."""
    table = np.ones((5, 2), np.float32)
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", 6), minimum=0, maximum=4)
    made = export(lookup, table, inputs=[ids])

    assert made.answer(ids=np.full((2, 6), 4, np.int32)).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(Exception, match="input 'ids': expected values <= 4, got 5"):
        made.answer(ids=np.full((2, 6), 5, np.int32))


def test_non_finite_goldens_of_floats_ask_for_a_file(refusal):
    """Where no integer input can be the cause, the message requests representative inputs."""
    message = refusal(lambda _params, x: jnp.log(x))
    assert message.endswith("; pass representative inputs with --golden FILE")


GOOD = {
    "ids": np.arange(30, dtype=np.int32).reshape(5, 6) + 3,
    "x": np.linspace(1, 2, 15, dtype=np.float32).reshape(5, 3),
}
INPUTS = [IDS, "x:float32[_,3]"]


def golden_file(folder, name, arrays):
    """Write golden inputs in the form that the file's name implies."""
    path = folder / name
    if name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        save_file({key: np.ascontiguousarray(a) for key, a in arrays.items()}, path)
    return path


def both(_params, ids, x):
    """Take two inputs and return two outputs."""
    return {"x": jnp.log(x), "ids": ids}


@pytest.mark.parametrize("name", ["g.npz", "g.safetensors"])
def test_goldens_come_from_a_file(export, tmp_path, name):
    """Inputs of a file are the bundle's goldens, row for row."""
    made = export(both, inputs=INPUTS, golden=golden_file(tmp_path, name, GOOD))
    (golden,) = made.manifest.goldens
    tensors = made.model.bundle.map(golden.file)

    assert golden.rows == 5
    np.testing.assert_array_equal(tensors["input/ids"], GOOD["ids"])
    np.testing.assert_array_equal(tensors["input/x"], GOOD["x"])
    np.testing.assert_allclose(tensors["output/x"], np.log(GOOD["x"]), rtol=1e-6)


def test_a_bundles_own_golden_is_a_golden_file(export):
    """The goldens of one bundle can be those of the next."""
    first = export(both, inputs=INPUTS, golden=GOOD)
    again = export(both, inputs=INPUTS, golden=first.path / "golden/0.safetensors")
    assert again.manifest.goldens[0].file.sha256 == first.manifest.goldens[0].file.sha256


@pytest.mark.parametrize("name", ["g.npz", "g.safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "golden: input 'x': expected float32[_, 3], got nothing"),
        ({"y": GOOD["x"]}, "golden: inputs: expected ['ids', 'x'], got 'y' as well"),
        (
            {"x": GOOD["x"].astype(np.float64)},
            "golden: input 'x': expected float32[_, 3], got float64[5, 3]",
        ),
        (
            {"ids": GOOD["ids"].astype(np.int64)},
            "golden: input 'ids': expected int32[_, 6], got int64[5, 6]",
        ),
        ({"x": GOOD["x"][:, :2]}, "golden: input 'x': expected float32[_, 3], got float32[5, 2]"),
        (
            {"x": GOOD["x"][:4]},
            (
                "golden: input 'x': expected float32[_, 3] with _=5 as in the inputs before it, got "
                "float32[4, 3]"
            ),
        ),
        ({"ids": GOOD["ids"] + 47}, "golden: input 'ids': expected values <= 49, got 79"),
        (
            {"ids": GOOD["ids"][:0], "x": GOOD["x"][:0]},
            "golden: expected at least one row, got none",
        ),
    ],
    ids=["missing", "unknown", "float64", "int64", "shape", "rows", "range", "empty"],
)
def test_a_golden_file_that_does_not_fit_is_refused(refusal, tmp_path, name, change, message):
    """Wrong names, dtypes, shapes and values of a golden file are one line each."""
    arrays = {key: a for key, a in {**GOOD, **change}.items() if a is not None}
    path = golden_file(tmp_path, name, arrays)
    assert refusal(both, inputs=INPUTS, golden=path) == message


@pytest.mark.parametrize("name", ["g.npz", "g.safetensors", "g.txt"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no", b"\x93NUMPY\x01\x00", b"x" * 9])
def test_a_golden_file_that_is_damaged_is_one_line(refusal, tmp_path, name, data):
    """A file that holds something else is refused by name."""
    path = tmp_path / name
    path.write_bytes(data)
    message = refusal(both, inputs=INPUTS, golden=path)
    assert message.startswith(
        f"golden {path}: expected .safetensors or .npz of inputs by name, got"
    )


def test_a_golden_file_runs_no_code(refusal, tmp_path):
    """An .npz with pickled objects inside is refused."""
    path = golden_file(tmp_path, "g.npz", {**GOOD, "x": np.array([object()], dtype=object)})
    assert "Object arrays cannot be loaded when allow_pickle=False" in refusal(
        both, inputs=INPUTS, golden=path
    )


@pytest.mark.parametrize(
    ("platform", "dtypes", "output", "precision", "atol", "rtol"),
    [
        ("cpu", {"float32"}, "float32", None, 4e-5, 1e-4),
        ("cpu", {"float32", "float64"}, "float64", None, 4e-5, 1e-4),
        ("cpu", {"float64"}, "float64", None, 2e-11, 1e-9),
        ("cpu", {"float32", "float16"}, "float32", None, 1e-2, 5e-3),
        ("cpu", {"float32", "bfloat16"}, "float32", None, 6e-2, 3e-2),
        ("cpu", {"bfloat16"}, "bfloat16", None, 6e-2, 3e-2),
        ("cpu", {"float8_e4m3fn"}, "float32", None, 0.5, 0.25),
        ("cpu", {"float32"}, "int32", None, 0, 0),
        ("cpu", {"float32"}, "bool", None, 0, 0),
        ("cuda", {"float32"}, "float32", None, 1e-2, 5e-3),
        ("cuda", {"float32"}, "float32", "tensorfloat32", 1e-2, 5e-3),
        ("cuda", {"float32"}, "float32", "highest", 1.6e-4, 4e-4),
        ("cuda", {"float32"}, "float32", "float32", 1.6e-4, 4e-4),
        ("cuda", {"bfloat16"}, "float32", None, 6e-2, 3e-2),
        ("cuda", {"float64"}, "float64", None, 2e-11, 1e-9),
        ("cuda", {"float32"}, "uint8", None, 0, 0),
    ],
)
def test_tolerances_follow_dtype_and_platform(platform, dtypes, output, precision, atol, rtol):
    """
    The coarsest dtype of the computation decides, relative to the output's largest value;
    a GPU's TF32 counts unless the precision is pinned; integers are exact.
    """
    spec = TensorSpec(name="y", dtype=output, shape=("_", 2))
    expected = [np.array([[1, -2]], np.float32).astype(output)]
    got = tolerance(platform, dtypes, spec, expected, precision)
    assert (got.atol, got.rtol) == (pytest.approx(atol), rtol)


def test_tolerances_and_drift_live_in_the_manifest(export):
    """The manifest has tolerances per platform and output, and the drift between buckets."""
    rng = np.random.default_rng(0)
    params = rng.standard_normal((64, 64)).astype(np.float32)

    def model(params, x):
        return {"y": jnp.tanh(x @ params @ params), "sign": x[:, 0] > 0}

    made = export(model, params, inputs=["x:float32[_,64]"], platforms=("cpu", "cuda"))
    m = made.manifest

    assert set(m.tolerances) == {"cpu", "cuda"}
    assert m.tolerances["cpu"]["y"].atol == pytest.approx(2e-5, rel=0.01)
    assert m.tolerances["cuda"]["y"].atol == pytest.approx(5e-3, rel=0.01)
    assert m.tolerances["cpu"]["sign"].atol == m.tolerances["cuda"]["sign"].rtol == 0
    assert set(m.drift) == {"y", "sign"}
    assert m.drift["sign"] == 0
    assert 0 <= m.drift["y"] < 2e-5
    assert made.report.drift == m.drift


class Normed(linen.Module):
    """A batch norm and a dense layer, in the dtype of the input."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.BatchNorm(use_running_average=True)(x))


def test_casting_takes_floating_params_only(export, rows):
    """--dtype bfloat16 casts weights; batch statistics stay; the change is reported."""
    variables = Normed().init(jax.random.key(0), rows)
    made = export(Normed(), variables, dtype="bfloat16")
    cast = {
        **variables,
        "params": jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables["params"]),
    }

    assert {e.name: e.dtype for e in made.manifest.params.entries} == {
        "batch_stats/BatchNorm_0/mean": "float32",
        "batch_stats/BatchNorm_0/var": "float32",
        "params/BatchNorm_0/bias": "bfloat16",
        "params/BatchNorm_0/scale": "bfloat16",
        "params/Dense_0/bias": "bfloat16",
        "params/Dense_0/kernel": "bfloat16",
    }
    np.testing.assert_allclose(made.answer(x=rows), Normed().apply(cast, rows), atol=2e-2)
    change = np.abs(Normed().apply(cast, rows) - Normed().apply(variables, rows)).max()
    assert 0 < made.report.cast_drift["output"] < 20 * change


def test_casting_leaves_integers_and_statistics_of_functions_alone(plan):
    """In a plain function's params, too, only floats that are no statistics are cast."""
    params = {
        "w": np.ones((3, 2), np.float32),
        "ids": np.arange(3, dtype=np.int32),
        "flag": np.array([True]),
        "batch_stats": {"mean": np.ones(3, np.float32)},
    }
    made = plan(lambda p, x: x @ p["w"] + p["ids"].sum(), params, dtype="float16")
    assert {e.name: e.dtype for e in made.packing.entries} == {
        "batch_stats/mean": "float32",
        "flag": "bool",
        "ids": "int32",
        "w": "float16",
    }


def test_casting_leaves_nnx_statistics_alone(plan):
    """nnx statistics are known by their kind, not by their name."""
    made = plan(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), dtype="bfloat16")
    assert {e.name: e.dtype for e in made.packing.entries} == {
        "bias": "bfloat16",
        "mean": "float32",
        "scale": "bfloat16",
        "var": "float32",
    }


def test_without_a_cast_there_is_no_cast_drift(plan):
    """Only --dtype has a drift to report, and a cast that changes nothing has none."""
    params = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    assert plan(affine, params).cast_drift == {}
    assert plan(affine, params, dtype="float32").cast_drift == {"output": 0.0}


def test_sentinels_do_not_loosen_the_tolerance():
    """Places filled with -1e9 leave the tolerance of the other values as it was."""
    values = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    filled = np.where(np.arange(8) < 3, np.float32(-1e9), values)
    spec = TensorSpec(name="y", dtype="float32", shape=("_", 8))

    plain = tolerance("cpu", {"float32"}, spec, [values], None)
    masked = tolerance("cpu", {"float32"}, spec, [filled], None)

    assert plain.atol < 1e-4
    assert masked.atol < 30 * plain.atol


def test_a_model_that_exits_is_one_error(tmp_path):
    """A model that calls sys.exit while it is traced is refused like one that raises."""

    def apply(_, __):
        raise SystemExit(0)

    with pytest.raises(ExportError, match="cannot be traced: SystemExit: 0"):
        export_model(apply, inputs=["x:float32[_,3]"], buckets=(1,), out=tmp_path / "b")
