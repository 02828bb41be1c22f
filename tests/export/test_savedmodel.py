"""A SavedModel beside a bundle: the same params and answers, in what TensorFlow reads."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from pytest import approx, fixture, mark

from export import TensorSpec, export_model, for_tensorflow
from runtime import load
from tests import in_tensorflow
from tests.conftest import Tagger
from tests.export.conftest import verify_here
from tests.export.savedmodels import W, X, affine, in_one_process
from tests.serving import ROOT


class Made:
    """A bundle and the SavedModel beside it.

    Args:
      report: of their export.
      tensorflow: runs functions of tests.in_tensorflow.
    """

    def __init__(self, report, tensorflow):
        self.report = report.savedmodel
        self.notes = report.notes
        self.path = report.savedmodel.path
        self.tensorflow = tensorflow
        self._bundle = report.bundle

    @property
    def bundle(self):
        """Return the bundle, loaded."""
        return load(self._bundle, "cpu")

    def ask(self, function, *arguments):
        """Ask TensorFlow about the SavedModel."""
        return self.tensorflow(function, self.path, *arguments)

    def answer(self, signature="serving_default", **inputs):
        """Run a signature; outputs by name."""
        return self.ask(in_tensorflow.run, signature, inputs)


@fixture(scope="module")
def make(tmp_path_factory, tensorflow):
    """Export a model for the CPU and for TensorFlow."""

    def run(model, params=None, *, inputs=(X,), **options):
        out = tmp_path_factory.mktemp("savedmodel")
        given = {"buckets": (1, 2), **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("export.verification._run", verify_here)
            patch.setattr(for_tensorflow, "_tensorflow", in_one_process(tensorflow))
            report = export_model(
                model, params, inputs=inputs, out=out / "bundle", savedmodel=out / "tf", **given
            )
        return Made(report, tensorflow)

    return run


class Normed(nn.Module):
    """A convolution and a BatchNorm, as images go through them."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(nn.gelu(x, approximate=False).mean((1, 2)))


@fixture(scope="module")
def normed(make):
    """A model with batch statistics that are not their initial ones."""
    variables = Normed().init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    stats = jax.tree.map(lambda a: a + 0.5, variables["batch_stats"])
    return make(Normed(), {**variables, "batch_stats": stats}, inputs=["x:float32[_,8,8,1]"])


class Mixed(nn.Module):
    """bfloat16 in, several outputs of several dtypes out."""

    @nn.compact
    def __call__(self, x, flag):
        h = nn.Dense(8, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(x)
        return {"hidden": h, "top": jax.lax.top_k(h, 2), "sum": h.sum(-1) * flag, "on": h > 0}


@fixture(scope="module")
def mixed(make):
    """A bfloat16 model of two inputs and five outputs."""
    zeros = np.zeros((1, 4), jnp.bfloat16), np.zeros(1, np.int8)
    params = Mixed().init(jax.random.key(0), *zeros)
    return make(Mixed(), params, inputs=["x:bfloat16[_,4]", "flag:int8[_]"])


IDS = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=9)
MASK = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True)


@fixture(scope="module")
def tagger(make):
    """A model with a second axis, of 2 to 8."""
    zeros = np.zeros((1, 4), np.int32)
    params = Tagger().init(jax.random.key(1), zeros, zeros + 1)
    return make(Tagger(), params, inputs=[IDS, MASK], axes={"seq": "2..4,8"})


def test_a_batch_of_any_size_gets_the_answers_of_the_bundle(normed):
    """Five rows, which no bucket holds, get in TensorFlow what the bundle answers."""
    x = np.random.default_rng(0).standard_normal((5, 8, 8, 1)).astype(np.float32)

    answer = normed.answer(x=x)["output"]

    np.testing.assert_allclose(answer, normed.bundle.predict({"x": x})["output"], atol=2e-6)
    np.testing.assert_array_equal(answer, normed.answer("predict", x=x)["output"])
    assert normed.report.signatures == {
        "serving_default": "x: float32[_, 8, 8, 1]",
        "predict": "x: float32[_, 8, 8, 1]",
    }


def test_each_param_is_one_variable(normed):
    """Weights and batch statistics are variables, by the names and with the values they have."""
    variables = normed.ask(in_tensorflow.variables)

    names = {entry.name: entry.shape for entry in normed.bundle.manifest.params.entries}
    assert {name: array.shape for name, array in variables.items()} == names
    assert normed.report.variables == len(names) == 8
    means = next(a for n, a in variables.items() if n.endswith("mean"))
    np.testing.assert_array_equal(means, np.full(4, 0.5, np.float32))


def test_params_keep_names_that_tensorflow_does_not_allow(make):
    """A param of any name is a variable of its own, found by that name, if another's is alike."""
    params = {
        "_w": W["w"],
        "größe": np.float32([1]),
        "a b": np.float32([2]),
        "a_b": np.float32([3]),
    }

    made = make(lambda p, x: x @ p["_w"] + p["größe"] + 10 * p["a b"] + 100 * p["a_b"], params)

    variables = made.ask(in_tensorflow.variables)
    assert {name: array.tolist() for name, array in variables.items()} == {
        name: array.tolist() for name, array in params.items()
    }
    assert made.answer(x=np.zeros((1, 3), np.float32))["output"].tolist() == [[321, 321]]


def test_params_of_no_elements_and_the_same_array_twice_are_variables(make):
    """Each has its own, and the model its answer."""
    params = {"a": W["w"], "b": W["w"], "none": np.zeros((0, 2), np.float32)}

    made = make(lambda p, x: x @ p["a"] + x @ p["b"] + p["none"].sum(0), params)

    shapes = {name: array.shape for name, array in made.ask(in_tensorflow.variables).items()}
    assert shapes == {"a": (3, 2), "b": (3, 2), "none": (0, 2)}
    assert made.answer(x=np.float32([[1, 0, 0]]))["output"].tolist() == [[2, 4]]


def test_the_graph_holds_one_program_and_no_params(make):
    """A weight of 4 MB leaves the graph small, whatever the number of signatures and buckets."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((1000, 1000)).astype(np.float32)}

    made = make(affine, weights, inputs=["x:float32[_,1000]"], buckets=(1, 2, 4))

    graph = Path(made.path, "saved_model.pb").read_bytes()
    assert len(graph) < 100_000
    assert weights["w"][0, :4].tobytes() not in graph
    assert len(made.ask(in_tensorflow.programs)) == 1


def test_a_large_constant_of_the_models_code_is_a_variable(make):
    """What the bundle hoists out of the model's code is no constant of the graph either."""
    table = np.arange(300_000, dtype=np.float32).reshape(-1, 3)

    made = make(lambda p, x: x @ p["w"] + table.sum() + jnp.asarray(table)[0, 1], W)

    variables = made.ask(in_tensorflow.variables)
    np.testing.assert_array_equal(variables["constant/0"], table)


def test_many_small_constants_of_the_models_code_are_variables(make):
    """Small arrays that are large together are variables too, each by its own name."""
    layers = list(np.random.default_rng(0).standard_normal((32, 96, 96)).astype(np.float32) / 10)

    def apply(params, x):
        for layer in layers:
            x = jnp.tanh(x @ layer)
        return x * params

    made = make(apply, np.float32(2), inputs=["x:float32[_,96]"])

    variables = made.ask(in_tensorflow.variables)
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(variables[f"constant/{i}"], layer)
    assert Path(made.path, "saved_model.pb").stat().st_size < 100_000
    rows = np.random.default_rng(1).standard_normal((3, 96)).astype(np.float32)
    (answer,) = made.answer(x=rows).values()
    np.testing.assert_allclose(answer, apply(np.float32(2), rows), rtol=1e-4, atol=1e-5)


def test_names_and_dtypes_are_those_of_the_manifest(mixed):
    """Several inputs and outputs of several dtypes, bfloat16 among them, keep both."""
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(jnp.bfloat16)
    flag = np.array([1, 0, 1], np.int8)

    answer = mixed.answer(x=x, flag=flag)

    expected = mixed.bundle.predict({"x": x, "flag": flag})
    assert {n: a.dtype for n, a in answer.items()} == {n: a.dtype for n, a in expected.items()}
    assert set(answer) == {"hidden", "top.0", "top.1", "sum", "on"}
    for name, array in expected.items():
        np.testing.assert_allclose(np.float32(answer[name]), np.float32(array), atol=0.05)


def test_an_axis_may_have_any_size_in_its_range(tagger):
    """A sequence of 5, between the buckets, is answered without padding."""
    ids, mask = np.int32([[1, 2, 3, 4, 5]]), np.int32([[1, 1, 1, 0, 0]])

    answer = tagger.answer(ids=ids, mask=mask)

    expected = tagger.bundle.predict({"ids": ids, "mask": mask})
    for name, array in expected.items():
        np.testing.assert_allclose(answer[name], array, atol=1e-6)
    assert tagger.report.signatures["serving_default"] == "ids: int32[_, seq], mask: int32[_, seq]"


@mark.parametrize(("size", "bound"), [(9, "seq <= 8"), (1, "seq >= 2")])
def test_an_axis_beyond_its_range_is_refused(tagger, size, bound):
    """TensorFlow refuses a sequence that no bucket holds, and names the bound."""
    ids = np.ones((1, size), np.int32)

    assert bound in tagger.ask(in_tensorflow.refusal, "predict", {"ids": ids, "mask": ids})


def branching(params, x):
    """Branch on the batch size, which fails for a symbolic one."""
    return (x + 0 if x.shape[0] > 1 else x * 1) @ params["w"]


def test_a_batch_that_cannot_be_symbolic_gets_a_signature_for_each_bucket(make):
    """Buckets have a signature each, the largest is the default, and the report has the reason."""
    made = make(branching, W)

    assert made.report.signatures == {
        "serving_default": "x: float32[2, 3]",
        "b1": "x: float32[1, 3]",
        "b2": "x: float32[2, 3]",
    }
    line = branching.__code__.co_firstlineno + 2
    assert made.notes == (
        (
            "the SavedModel has fixed sizes, since the model does not lower with any batch: the model "
            "cannot be traced: InconclusiveDimensionOperation: Symbolic dimension comparison 'batch' "
            f"> '1' is inconclusive. (test_savedmodel.py, line {line})"
        ),
    )
    row = np.float32([[1, 2, 3]])
    np.testing.assert_allclose(made.answer("b1", x=row)["output"], row @ W["w"])


def branching_on_axis(params, ids):
    """Look at the sequence, but not at the batch."""
    return params["w"][ids].sum(1) if ids.shape[1] > 4 else params["w"][ids].sum(axis=1)


def test_an_axis_that_cannot_be_symbolic_gets_a_signature_for_each_size(make):
    """The batch is symbolic all the same; sizes of the axis have a signature each."""
    weights = {"w": np.float32([[0, 0], [3, 4]])}
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=1)

    made = make(branching_on_axis, weights, inputs=[ids], axes={"seq": (4, 8)})

    assert made.report.signatures == {
        "serving_default": "ids: int32[_, 8]",
        "seq4": "ids: int32[_, 4]",
        "seq8": "ids: int32[_, 8]",
    }
    (note,) = made.notes
    assert note.startswith(
        "the SavedModel has fixed sizes of seq, since the model does not lower with any batch and seq: "
    )
    answer = made.answer("seq4", ids=np.ones((3, 4), np.int32))["output"]
    np.testing.assert_array_equal(answer, [[12, 16]] * 3)


def test_axes_may_be_named_as_symbolic_sizes_may_not(make):
    """An axis 'batch' is not taken for the batch, nor 'max' for the function of JAX's sizes."""
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "batch"), minimum=0, maximum=9)
    x = TensorSpec(name="x", dtype="float32", shape=("_", "max"))
    table = {"table": np.arange(10, dtype=np.float32)}

    made = make(
        lambda p, ids, x: {"found": p["table"][ids], "twice": 2 * x},
        table,
        inputs=[ids, x],
        axes={"batch": (4,), "max": (2, 6)},
    )

    assert made.report.signatures["predict"] == "ids: int32[_, batch], x: float32[_, max]"
    answer = made.answer(ids=np.int32([[1, 2, 3]] * 4), x=np.ones((4, 5), np.float32))
    assert answer["found"].tolist() == [[1, 2, 3]] * 4
    assert answer["twice"].shape == (4, 5)


def unlike_when_symbolic(params, x):
    """Answer otherwise where the batch is symbolic."""
    return x @ params["w"] + (0 if isinstance(x.shape[0], int) else 1)


def test_fixed_sizes_stand_in_where_symbolic_ones_go_wrong(make):
    """A SavedModel that answers wrongly with a symbolic batch is made with fixed sizes."""
    made = make(unlike_when_symbolic, W)

    assert list(made.report.signatures) == ["serving_default", "b1", "b2"]
    (note,) = made.notes
    assert note.startswith(
        "the SavedModel has fixed sizes, since with symbolic ones the SavedModel does not answer "
        "as the model does, in TensorFlow "
    )
    assert "leave out --savedmodel" not in note
    assert made.report.max_error == approx(0, abs=1e-5)


def test_64_bit_types_stay(make):
    """Integers of 64 bits are added as such."""
    seven = {"seven": np.array([7], np.int64)}
    made = make(lambda p, x: x + p["seven"], seven, inputs=["x:int64[_,1]"])

    assert made.answer(x=np.int64([[2**40]]))["output"].tolist() == [[2**40 + 7]]


def test_a_model_that_mixes_rows_goes_with_the_bundle(make):
    """Where it is allowed, goldens are compared at their own batch alone."""
    zero = {"bias": np.zeros(3, np.float32)}

    made = make(lambda p, x: x - x.mean(0) + p["bias"], zero, allow_row_mixing=True)

    assert made.answer(x=np.float32([[0, 0, 0], [2, 4, 6]]))["output"].tolist() == [
        [-1, -2, -3],
        [1, 2, 3],
    ]


def test_warm_up_requests_cover_every_signature_and_bucket(tagger):
    """TensorFlow Serving finds a request for each program it would compile later."""
    requests = tagger.ask(in_tensorflow.warmup)

    assert tagger.report.warmup_requests == len(requests)
    assert {model for model, _, _ in requests} == {"model"}
    for signature in ("serving_default", "predict"):
        shapes = {inputs["ids"].shape for _, name, inputs in requests if name == signature}
        assert shapes == {(1, 4), (2, 4), (1, 8), (2, 8)}
    assert all(set(inputs) == {"ids", "mask"} for _, _, inputs in requests)
    assert all(inputs["ids"].dtype == np.int32 for _, _, inputs in requests)


def test_warm_up_requests_are_answered(tagger):
    """Each request runs its signature, and returns the bundle's answer."""
    answered = tagger.ask(in_tensorflow.replay)

    assert len(answered) == tagger.report.warmup_requests
    for inputs, outputs in answered:
        expected = tagger.bundle.predict(inputs)
        assert set(outputs) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(outputs[name], array, atol=1e-6)


def test_programs_are_written_as_tensorflow_reads_them(normed):
    """The StableHLO is the one TensorFlow reads, older than JAX's; the convention the oldest."""
    reads, tensorflow = normed.tensorflow(in_tensorflow.reads)

    (program,) = normed.ask(in_tensorflow.programs)
    assert (program["version"], program["platforms"]) == (9, ["CPU", "CUDA"])
    assert f"StableHLO_v{reads}".encode() in program["module"][:40]
    assert b"composite" not in program["module"]
    report = normed.report
    assert (report.stablehlo, report.tensorflow) == (reads, tensorflow)
    assert report.written_as == normed.bundle.manifest.exporter["stablehlo"] != reads


def test_an_older_stablehlo_is_written_for_a_tensorflow_elsewhere(make):
    """With tf_stablehlo programs are older still, and run here too."""
    made = make(affine, W, tf_stablehlo="1.5.0", platforms=("cpu",))

    (program,) = made.ask(in_tensorflow.programs)
    assert b"StableHLO_v1.5.0" in program["module"][:40]
    assert program["platforms"] == ["CPU"]
    assert made.report.stablehlo == "1.5.0"


def test_a_stablehlo_newer_than_the_installed_tensorflow_is_not_written(make):
    """What could not be verified here is not written: the installed one sets the limit."""
    made = make(affine, W, tf_stablehlo="99.0.0")

    assert made.report.stablehlo == made.tensorflow(in_tensorflow.reads)[0]


def test_the_report_says_what_was_made_and_what_serving_needs(normed):
    """Its lines name path, signatures, versions, proof, and a flag of TensorFlow Serving."""
    report = normed.report

    assert report.lines() == [
        f"SavedModel {normed.path}: 8 variables, 4 warm-up requests",
        "  serving_default(x: float32[_, 8, 8, 1])",
        "  predict(x: float32[_, 8, 8, 1])",
        (
            f"  StableHLO {report.stablehlo}, rewritten from {report.written_as}, calling convention 9; "
            f"verified by TensorFlow {report.tensorflow} on cpu, max error {report.max_error:.2g}"
        ),
        (
            "  TensorFlow Serving runs it with --xla_cpu_compilation_enabled=true; its GPU image has no "
            "compiler for such programs: serve it on CPU there"
        ),
    ]


def test_an_unverified_savedmodel_is_said_to_be(make):
    """With --unverified it is written for CUDA all the same, and verified by nothing."""
    made = make(affine, W, platforms=("cuda",), unverified=True)

    assert (made.report.verified, made.report.max_error) == ((), None)
    assert re.search(r"; verified by TensorFlow [\d.]+ on nothing$", made.report.lines()[3])
    assert made.ask(in_tensorflow.programs)[0]["platforms"] == ["CUDA"]


def test_what_is_not_public_in_jax2tf_is_there(tensorflow):
    """The one function of it that is used takes tensors and an Exported, in this JAX."""
    assert tensorflow(in_tensorflow.what_jax2tf_takes) == ["args_flat_tf", "exported"]


def test_one_module_knows_jax2tf():
    """A JAX that changes it breaks export/savedmodel.py alone."""
    sources = {path.name: path.read_text() for path in (ROOT / "export").glob("*.py")}

    named = [name for name, text in sources.items() if re.search(r"import .*jax2tf", text)]
    assert named == ["savedmodel.py"]
    assert len(re.findall(r"jax2tf\._\w+", sources["savedmodel.py"])) == 1


def test_the_exporter_itself_never_imports_tensorflow(normed):
    """All of it happened in other processes, this one has no TensorFlow."""
    assert normed.report.variables
    assert "tensorflow" not in sys.modules


@mark.parametrize(
    "w",
    [
        np.array([[1 + 2j], [3j], [-1]], np.complex64),
        np.array([[1], [-8], [7]], ml_dtypes.int4),
        np.array([[1], [-2], [0.5]], ml_dtypes.float8_e4m3fnuz),
    ],
    ids=["complex64", "int4", "float8"],
)
def test_params_of_dtypes_that_bundles_lack(make, w):
    """Params that are stored as others are variables of those, for any batch."""
    made = make(lambda p, x: jnp.real(x @ p["w"].astype(jnp.complex64)), {"w": w})
    x = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    expected = (x @ w.astype(np.complex64)).real
    np.testing.assert_allclose(made.answer(x=x)["output"], expected, rtol=1e-5)
