"""`python -m export`: what a MODEL can be, every flag, every typo, every exit status."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export import export_model
from export.cli import parser
from export.spec import ExportSpec
from runtime import load
from runtime.manifest import OutputFormat
from runtime.signature import TensorSpec

MODELS = """
import numpy as np
from flax import linen, nnx
from export import ExportSpec

W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.float32([10, 20])

def affine(params, x):
    return x @ params["w"] + params["b"]

def affine_of_dict(params, inputs):
    return inputs["x"] @ params["w"] + params["b"]

def difference(params, a, b):
    return (a - b) @ params["w"]

def difference_of_dict(params, inputs):
    return (inputs["a"] - inputs["b"]) @ params["w"]

class Dense(linen.Module):
    features: int = 2
    scale: float = 1.0

    @linen.compact
    def __call__(self, x):
        return self.scale * linen.Dense(self.features)(x)

class Needy(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x):
        return linen.Dense(self.features)(x)

dense = Dense()

class Net(nnx.Module):
    def __init__(self, features: int = 2, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, features, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)

net = Net(rngs=nnx.Rngs(1))

def make_net(rngs):
    return Net(rngs=rngs)

def trained_net():
    model = Net(rngs=nnx.Rngs(0))
    model.linear.kernel[...] = W
    model.linear.bias[...] = B
    return model

def make_dense(features=2):
    return Dense(features)

def broken(rngs):
    raise RuntimeError("no such thing\\nat all")

def broken_spec():
    raise RuntimeError("no such thing\\nat all")

spec = ExportSpec(
    model=affine, params={"w": W, "b": B}, inputs=["x:float32[_,3]"], buckets=(1, 2),
    platforms=("cpu",), name="from-spec",
)

def make_spec(name="made"):
    return ExportSpec(
        model=affine, params={"w": W, "b": B}, inputs=["x:float32[_,3]"], buckets=(1, 2),
        platforms=("cpu",), name=name,
    )

number = 7
"""

W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.array([10, 20], np.float32)
ROWS = np.array([[1, 2, 3], [0, -1, 0.5], [4, 0, 0]], np.float32)
X = "x:float32[_,3]"
SMALL = ("--buckets", "1,2", "--platforms", "cpu")

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with models, weights and a configuration, which is the current one."""
    (tmp_path / "models.py").write_text(MODELS)
    save_file({"w": W, "b": B}, tmp_path / "affine.safetensors")
    save_file({"Dense_0.kernel": W, "Dense_0.bias": B}, tmp_path / "dense.safetensors")
    save_file({"linear/kernel": W, "linear/bias": B}, tmp_path / "net.safetensors")
    save_file({"params.linear.kernel": W, "params.linear.bias": B}, tmp_path / "state.safetensors")
    (tmp_path / "config.json").write_text('{"features": 2, "max_seq_length": 128, "alpha": 1}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("affine", "affine"),
        ("affine_of_dict", "affine"),
        ("Dense", "dense"),
        ("dense", "dense"),
        ("make_dense", "dense"),
        ("Net", "net"),
        ("net", "net"),
        ("make_net", "net"),
        ("trained_net", None),
        ("trained_net", "net"),
        ("spec", None),
        ("make_spec", None),
    ],
)
def test_a_model_is_named_by_file_and_attribute(command, model, params):
    """
    Functions, linen and nnx Modules, classes, factories, specs and functions that
    return one are all models.
    """
    given = () if params is None else ("--params", f"{params}.safetensors")
    inputs = () if "spec" in model else ("--input", X, *SMALL)
    ran = command(f"models.py:{model}", *given, *inputs, "--out", "b")

    assert ran.status == 0, ran.err
    np.testing.assert_allclose(load("b", "cpu").predict({"x": ROWS})["output"], ROWS @ W + B)


@pytest.mark.parametrize("model", ["difference", "difference_of_dict"])
def test_several_inputs_are_passed_by_name_or_as_a_dict(command, model):
    """A function gets each input under its own name, or all of them in one dict."""
    inputs = ("--input", "b:float32[_,3]", "--input", "a:float32[_,3]")
    ran = command(
        f"models.py:{model}", "--params", "affine.safetensors", *inputs, *SMALL, "--out", "b"
    )

    assert ran.status == 0, ran.err
    answer = load("b", "cpu").predict({"a": ROWS, "b": ROWS[::-1].copy()})["output"]
    np.testing.assert_allclose(answer, (ROWS - ROWS[::-1]) @ W)


def test_a_model_is_named_by_module_and_attribute(command, folder, monkeypatch):
    """`pkg.mod:attr` is imported as Python imports it, and `attr` may have dots."""
    package = folder / "shop" / "vision"
    package.mkdir(parents=True)
    (package / "affine.py").write_text(MODELS + "\nclass zoo:\n    best = spec\n")
    monkeypatch.syspath_prepend(folder)

    assert command("shop.vision.affine:zoo.best", "--out", "b").status == 0
    assert load("b", "cpu").manifest.name == "from-spec"


def test_a_flag_wins_over_the_spec(command):
    """A flag replaces the spec's field; what no flag names stays."""
    ran = command("models.py:spec", "--version", "7", "--buckets", "2,4", "--out", "b", "--dry-run")
    whole = command("models.py:spec", "--version", "7", "--json", "--out", "b", "--dry-run").json

    assert ran.status == 0
    assert (whole["name"], whole["version"]) == ("from-spec", "7")


@pytest.mark.parametrize(
    ("model", "params"), [("Dense", "dense"), ("Net", "net"), ("make_dense", "dense")]
)
def test_config_names_the_keys_it_ignores(command, model, params):
    """--config passes constructor arguments and says which keys the model does not take."""
    words = (f"models.py:{model}", "--params", f"{params}.safetensors", "--input", X, *SMALL)
    ran = command(*words, "--config", "config.json", "--out", "b", "--dry-run", "--json")
    note = "--config: ignored alpha, max_seq_length, which the model does not take"

    assert ran.status == 0
    assert f"note: {note}" in ran.err.splitlines()
    assert note in ran.json["notes"]


def test_config_values_reach_the_model(command):
    """A value of the configuration is the one that the model is made with."""
    Path("scale.json").write_text('{"scale": 3.0}')
    words = ("--params", "dense.safetensors", "--input", X, *SMALL, "--out", "b")

    assert command("models.py:Dense", *words, "--config", "scale.json").status == 0
    np.testing.assert_allclose(load("b", "cpu").predict({"x": ROWS})["output"], 3 * (ROWS @ W + B))


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ("dense", "{}", "--config: expected a class or factory, got MODEL of type Dense"),
        ("Dense", "[1]", "--config c.json: expected a JSON object, got list"),
        (
            "Dense",
            "{'a': 1}",
            (
                "--config c.json: expected a JSON file, got Expecting property name enclosed in double "
                "quotes: line 1 column 2 (char 1)"
            ),
        ),
        (
            "Needy",
            '{"feature": 2}',
            "Needy: expected values for features, got none; pass --config FILE.json",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(command, model, text, message):
    """A configuration that does not read, or is for nothing, is refused in one line."""
    Path("c.json").write_text(text)
    ran = command(f"models.py:{model}", "--config", "c.json", "--input", X, "--out", "b")

    assert (ran.status, ran.error) == (1, message)


def test_every_flag_reaches_the_bundle(command, folder):
    """All flags together make the bundle that they describe."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 4)).astype(np.float32)
    save_file({"ema_params/table": table}, folder / "state2.safetensors")
    Path("bag.py").write_text(
        "import jax.numpy as jnp\n"
        "def bag(params, ids, mask, extra):\n"
        "    rows = params['table'][ids] * mask[..., None].astype(jnp.float32)\n"
        "    return {'logits': rows.sum(1) + extra, 'ids': ids}\n"
    )
    ids = rng.integers(3, 49, (5, 6), dtype=np.int32)
    np.savez("golden.npz", ids=ids, extra=np.ones((5, 4), np.float32))
    ran = command(
        *("bag.py:bag", "--params", "state2.safetensors", "--params-path", "ema_params"),
        *("--input", "ids:int32[_,seq]", "--input", "mask:int8[_,seq]"),
        *("--input", "extra:float32[_,4]", "--axis", "seq=4,8", "--range", "ids=3:49"),
        *("--pad", "ids=3", "--mask", "mask", "--buckets", "1,3", "--platforms", "cpu,cuda"),
        *("--output", "classification:logits:logits", "--labels", "a, b,c,d"),
        *("--dtype", "bfloat16", "--matmul-precision", "highest", "--golden", "golden.npz"),
        *("--seed", "5", "--name", "bag", "--version", "12", "--out", "b"),
    )
    assert ran.status == 0, ran.err

    m = load("b", "cpu").manifest
    assert (m.name, m.version, m.matmul_precision) == ("bag", "12", "highest")
    assert (m.platforms, m.verified, m.buckets) == (("cpu", "cuda"), ("cpu",), (1, 3))
    assert m.signature.inputs == (
        TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), pad=3, minimum=3, maximum=49),
        TensorSpec(name="mask", dtype="int8", shape=("_", "seq"), mask=True),
        TensorSpec(name="extra", dtype="float32", shape=("_", 4)),
    )
    assert [(a.name, a.sizes) for a in m.signature.axes] == [("seq", (4, 8))]
    assert [str(o) for o in m.signature.outputs] == ["int32[_, seq]", "float32[_, 4]"]
    assert (m.output_format.kind, m.output_format.output) == ("classification", "logits")
    assert (m.output_format.scores, m.output_format.labels) == ("logits", ("a", "b", "c", "d"))
    assert [p.dtype for p in m.params.entries] == ["bfloat16"]
    assert (m.goldens[0].axes, m.goldens[0].rows) == ({"seq": 6}, 5)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ExportSpec)])
def test_a_spec_has_all_that_flags_have(field):
    """
    Each field of a spec has its flag and each flag its field, but for those that say how
    to run.
    """
    flags = {action.dest for action in parser()._actions}
    of_inputs = {"ranges": "minimum", "pads": "pad", "masks": "mask"}
    of_running = {"help", "out", "overwrite", "dry_run", "json", "config"}
    known = {f.name for f in dataclasses.fields(TensorSpec)}

    assert field in flags
    assert flags - {f.name for f in dataclasses.fields(ExportSpec)} == of_running | set(of_inputs)
    assert set(of_inputs.values()) <= known


def test_a_spec_has_defaults_for_serving_anywhere():
    """Unless told otherwise an export is for CPU and CUDA, at the usual batch sizes."""
    spec = ExportSpec(model=None)
    assert (tuple(spec.platforms), tuple(spec.buckets)) == (("cpu", "cuda"), (1, 4, 8, 16, 32, 64))
    assert (spec.output, spec.seed, spec.name, spec.version) == ("raw", 0, "model", "1")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("raw", OutputFormat()),
        ("softmax:b", OutputFormat(kind="softmax", output="b")),
        (
            "classification:logits:a",
            OutputFormat(kind="classification", output="a", scores="logits"),
        ),
        (
            "classification:probabilities:b",
            OutputFormat(kind="classification", output="b", scores="probabilities"),
        ),
    ],
)
def test_output_formats_name_their_output(plan, output, expected):
    """A format says what it makes of which output, and whether it gets probabilities."""
    made = plan(lambda _params, x: {"a": x, "b": -x, "n": x > 0}, output=output)
    assert made.output_format == expected


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("softmax", "output: expected softmax:NAME with a NAME of a, n, got no name"),
        ("softmax:n", "output 'n': expected floats [_, classes] for softmax, got bool[_, 3]"),
        ("softmax:x", "output: expected one of a, n, got 'x'"),
    ],
)
def test_output_formats_that_do_not_fit_are_refused(refusal, output, message):
    """A format needs one output of floats per class."""
    assert refusal(lambda _params, x: {"a": x, "n": x > 0}, output=output) == message


def test_options_win_over_a_specs_fields(tmp_path):
    """export_model takes a spec, and keywords replace its fields."""
    spec = ExportSpec(model=lambda p, x: x * p, params=np.float32(2), inputs=[X], name="spec")
    report = export_model(spec, np.float32(3), buckets=(1,), out=tmp_path / "x", dry_run=True)

    assert (report.name, [p.bucket for p in report.programs]) == ("spec", ["b1"])


def test_labels_come_from_a_file_or_the_command_line(command):
    """--labels takes names, or a file with one on each line; long lists of names too."""
    names = [f"label number {i}" for i in range(2)]
    Path("labels.txt").write_text("\n".join(names) + "\n\n")
    long = ",".join("x" * 200 + str(i) for i in range(2))
    words = ("models.py:spec", "--output", "classification:probabilities", "--overwrite")

    assert command(*words, "--labels", "labels.txt", "--out", "b").status == 0
    assert load("b", "cpu").manifest.output_format.labels == tuple(names)
    assert command(*words, "--labels", long, "--out", "b", "--dry-run").status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ot", "b"], "--ot: no such option; did you mean --out?"),
        (["models.py:spec", "--ot=b"], "--ot: no such option; did you mean --out?"),
        (["models.py:spec", "--outt", "b"], "--outt: no such option; did you mean --out?"),
        (
            ["models.py:spec", "--out", "b", "--bucket", "1"],
            "--bucket: no such option; did you mean --buckets?",
        ),
        (
            ["models.py:spec", "--out", "b", "--matmul_precision", "high"],
            "--matmul_precision: no such option; did you mean --matmul-precision?",
        ),
        (["--out", "b", "--zzzzzz"], "--zzzzzz: no such option"),
        (["-o", "b"], "-o: no such option; did you mean --out?"),
        ([], "the following arguments are required: MODEL, --out"),
        (["models.py:spec"], "the following arguments are required: --out"),
        (
            ["models.py:spec", "--out", "b", "--dtype", "bfloat61"],
            (
                "argument --dtype: invalid choice: 'bfloat61' (choose from 'bfloat16', 'float16', "
                "'float32'); did you mean 'bfloat16'?"
            ),
        ),
        (
            ["models.py:spec", "--out", "b", "--matmul-precision", "higest"],
            (
                "argument --matmul-precision: invalid choice: 'higest' (choose from 'default', 'high', "
                "'highest', 'bfloat16', 'tensorfloat32', 'float32'); did you mean 'highest'?"
            ),
        ),
        (
            ["models.py:spec", "--out", "b", "--seed", "x"],
            "argument --seed: invalid int value: 'x'",
        ),
        (["models.py:spec", "more", "--out", "b"], "unrecognized arguments: more"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(command, words, message):
    """A typo of an option names the nearest one, whatever else is missing."""
    ran = command(*words)

    assert (ran.status, ran.out, ran.err.replace('"', "'")) == (2, "", f"error: {message}\n")


def test_values_that_look_like_options_are_none(command):
    """A negative number is a value, not an option that does not exist."""
    ran = command("models.py:spec", "--out", "b", "--dry-run", "--seed", "-3")
    assert ran.error == "seed: expected 0 or more, got -3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["models.py"],
            "model 'models.py': expected pkg.mod:attr or path/to/file.py:attr",
        ),
        (
            ["modles.py:spec"],
            (
                "model file modles.py: expected a Python file, got nothing there; did you mean "
                "'models.py'?"
            ),
        ),
        (
            ["models.py:Dens"],
            (
                "model 'models.py:Dens': expected an attribute of models.py, got 'Dens'; did you mean "
                "'Dense'?"
            ),
        ),
        (
            ["no_such_module:spec"],
            (
                "model 'no_such_module:spec': no_such_module cannot be imported: ModuleNotFoundError: "
                "No module named 'no_such_module'"
            ),
        ),
        (
            ["models.py:number", "--input", X],
            (
                "model: expected an ExportSpec, a flax Module or factory, or apply(params, inputs), "
                "got int"
            ),
        ),
        (["models.py:broken_spec"], "broken_spec: RuntimeError: no such thing"),
        (
            ["models.py:broken", "--input", X, "--params", "net.safetensors"],
            "the model cannot be traced: RuntimeError: no such thing",
        ),
        (
            ["models.py:Net", "--input", X],
            "params: expected the weights of the nnx.Module, got none; pass --params",
        ),
        (
            ["models.py:make_net", "--input", X],
            "params: expected the weights of the nnx.Module, got none; pass --params",
        ),
        (
            ["models.py:Dense", "--input", X],
            "params: expected the weights of the linen Module, got none; pass --params",
        ),
        (
            ["models.py:affine"],
            "inputs: expected at least one, got none; pass --input 'x:float32[_,28,28,1]'",
        ),
        (
            ["models.py:affine", "--input", "x:float23[_,3]"],
            (
                "input 'x': expected a dtype of bool, int8, int16, int32, int64, uint8, uint16, uint32, "
                "uint64, float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2, got "
                "'float23'; did you mean 'float32'?"
            ),
        ),
        (
            ["models.py:affine", "--input", "x=float32[_,3]"],
            "input 'x=float32[_,3]': expected NAME:DTYPE[_, SIZE, …] such as x:float32[_,28,28,1]",
        ),
        (
            ["models.py:affine", "--input", "x:float32[3]"],
            (
                "input 'x': expected [_, …] with sizes or axis names after the batch, got '3' in "
                "'x:float32[3]'"
            ),
        ),
        (
            ["models.py:affine", "--input", X, "--input", X],
            "inputs: expected each name once, got 'x' twice",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,4]", "--range", "idz=0:9"],
            "--range: expected an input of ids, got 'idz'; did you mean 'ids'?",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,4]", "--range", "ids=0-9"],
            "--range: expected NAME=LOW:HIGH such as ids=0:30521, got 'ids=0-9'",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,4]", "--range", "ids=9:0"],
            "input 'ids': expected a range, got 9:0",
        ),
        (
            ["models.py:affine", "--input", "ids:uint8[_,4]", "--range", "ids=0:256"],
            "input 'ids': expected values of uint8, got 256",
        ),
        (
            ["models.py:affine", "--input", X, "--range", "x=0:1"],
            "input 'x': expected an integer dtype for a range, got float32",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--mask", "idss"],
            "--mask: expected an input of ids, got 'idss'; did you mean 'ids'?",
        ),
        (
            ["models.py:affine", "--input", X, "--mask", "x"],
            "input 'x': expected a bucketed axis for a mask, got float32[_, 3]",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--pad", "ids=none"],
            "--pad: expected NAME=NUMBER, got 'ids=none'",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]"],
            "axis 'seq': expected its sizes, got none; pass --axis seq=32,64,128",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "sec=4,8"],
            "axis 'seq': expected its sizes, got none; did you mean 'sec'?",
        ),
        (
            ["models.py:affine", "--input", X, "--axis", "seq=4,8"],
            "axis 'seq': expected an input that has it, got none",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "seq=8,4"],
            "axis 'seq': expected increasing sizes from 1 on, got [8, 4]",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "seq"],
            "--axis: expected seq=32,64,128, got 'seq'",
        ),
        (
            ["models.py:spec", "--buckets", "1,x"],
            "--buckets: expected sizes such as 1,8,32, got '1,x'",
        ),
        (
            ["models.py:spec", "--buckets", "0,4"],
            "buckets: expected increasing sizes from 1 on, got [0, 4]",
        ),
        (
            ["models.py:spec", "--platforms", "cpu,cude"],
            "platforms: expected cpu, cuda, rocm, tpu, got 'cude'; did you mean 'cuda'?",
        ),
        (
            ["models.py:spec", "--platforms", "cpu,cpu"],
            "platforms: expected each name once, got 'cpu' twice",
        ),
        (
            ["models.py:spec", "--output", "classification:logit"],
            (
                "output: expected raw, softmax, classification:logits, classification:probabilities, "
                "got 'classification:logit'; did you mean 'classification:logits'?"
            ),
        ),
        (
            ["models.py:spec", "--output", "softmax:outptu"],
            "output: expected one of output, got 'outptu'; did you mean 'output'?",
        ),
        (
            ["models.py:spec", "--output", "softmax", "--labels", "a,b,c"],
            "labels: expected 2 for float32[_, 2], got 3",
        ),
        (
            ["models.py:spec", "--labels", "a,b"],
            "labels: expected --output classification:logits or :probabilities with them, got raw",
        ),
        (
            ["models.py:spec", "--name", "a/b"],
            "name: expected letters, digits, '_.-', got 'a/b'",
        ),
        (["models.py:spec", "--version", "1.2"], "version: expected digits, got '1.2'"),
        (
            ["models.py:affine", "--params", "affine.safetensor", "--input", X],
            (
                "params affine.safetensor: expected a file or directory, got nothing there; did you "
                "mean 'affine.safetensors'?"
            ),
        ),
        (
            [
                "models.py:net",
                "--params",
                "state.safetensors",
                "--params-path",
                "parms",
                "--input",
                X,
            ],
            "params path 'parms': expected one of params, got 'parms'; did you mean 'params'?",
        ),
        (
            ["models.py:difference", "--input", "a:float32[_,3]", "--input", "bb:float32[_,3]"],
            "inputs: expected a, b as the model has them, got a, bb; did you mean 'b'?",
        ),
        (
            ["models.py:spec", "--golden", "golden.npz"],
            (
                "golden golden.npz: expected .safetensors or .npz of inputs by name, got [Errno 2] No "
                "such file or directory: 'golden.npz'"
            ),
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_status_1(command, words, message):
    """A refusal names what was expected, what was got and the nearest valid name."""
    ran = command(*words, "--out", "b")

    assert (ran.status, ran.error, ran.out) == (1, message, "")
    assert not Path("b").exists()


def test_a_script_that_exits_is_no_model(command):
    """A file that ends the process when imported is refused, not obeyed."""
    Path("script.py").write_text("import sys\nsys.exit('usage: script.py')\n")
    ran = command("script.py:spec", "--out", "b")

    assert ran.status == 1
    assert ran.error == (
        "model 'script.py:spec': script.py cannot be imported: SystemExit: usage: script.py"
    )


def test_a_bundle_that_exists_is_left_alone_unless_overwrite(command, folder):
    """An existing bundle is refused with status 1; --overwrite replaces it."""
    assert command("models.py:spec", "--out", "b").status == 0
    again = command("models.py:spec", "--out", "b", "--name", "other")

    assert again.status == 1
    assert again.error == f"bundle {folder / 'b'}: exists; pass --overwrite to replace it"
    assert load("b", "cpu").manifest.name == "from-spec"
    assert command("models.py:spec", "--out", "b", "--name", "other", "--overwrite").status == 0
    assert load("b", "cpu").manifest.name == "other"


def test_a_target_that_cannot_be_written_is_one_line(command, folder):
    """What the operating system refuses names the path."""
    ran = command("models.py:spec", "--out", "affine.safetensors/b")

    assert (ran.status, ran.error) == (1, f"{folder}/affine.safetensors: File exists")


def test_dry_run_writes_nothing(command, folder):
    """--dry-run does everything but write and verify."""
    before = sorted(p.name for p in folder.rglob("*") if "__pycache__" not in str(p))
    ran = command("models.py:spec", "--out", "deep/b", "--dry-run")

    assert ran.status == 0
    assert ran.out.splitlines()[-1] == "dry run: nothing was written"
    assert sorted(p.name for p in folder.rglob("*") if "__pycache__" not in str(p)) == before


def test_json_is_all_that_stdout_gets(command):
    """--json prints the report for machines, and progress stays on stderr."""
    report = command("models.py:spec", "--out", "b", "--json").json

    assert report["bundle"] == "b"
    assert report["inputs"] == ["x: float32[_, 3]"]
    assert report["outputs"] == ["output: float32[_, 2]"]
    assert (report["platforms"], report["verified"]) == (["cpu"], ["cpu"])
    assert [p["bucket"] for p in report["programs"]] == ["b1", "b2"]
    assert all(p["flops"] > 0 and p["bytes_accessed"] > 0 for p in report["programs"])
    assert all(p["max_error"] < 1e-5 and p["temp_bytes"] >= 0 for p in report["programs"])
    assert report["drift"].keys() == {"output"}


def test_progress_is_plain_lines_where_there_is_no_terminal(command):
    """Each slow step is a line of its own with the time so far, without cursor movements."""
    ran = command("models.py:spec", "--out", "b", "--dry-run")

    assert [line.partition(" s] ")[2] for line in ran.err.splitlines()] == [
        "reading params",
        "tracing b1",
        "tracing b2",
        "running the un-exported model op by op",
        "lowering b1",
        "lowering b2",
    ]
    assert "\x1b" not in ran.out


def test_the_table_has_a_row_for_each_bucket(command):
    """The last thing printed is a table of the programs and where the bundle is."""
    lines = command("models.py:spec", "--out", "b").out.splitlines()
    header = next(line for line in lines if "bucket" in line)

    assert lines[0].strip() == "from-spec version 1"
    assert [word.strip() for word in header.strip("┃ ").split("┃")] == [
        *("bucket", "program", "FLOPs", "moved", "temp", "golden max error"),
    ]
    assert [line.split()[1] for line in lines if line.startswith("│")] == ["b1", "b2"]
    figures = ["inputs   x: float32[_, 3]", "outputs  output: float32[_, 2]"]
    figures += ["params   64 B, one copy for all programs", "lowered for cpu; verified on cpu"]
    assert [line for line in lines if line in figures] == figures
    assert lines[-1] == "bundle   b; next: python -m server --bundle b"


def test_help_shows_how_it_is_used(command):
    """--help ends well and shows commands that can be copied."""
    ran = command("--help")

    assert ran.status == 0
    assert "python -m export train.py:spec --params ckpt/ --out bundle/" in ran.out


@pytest.mark.e2e
def test_a_real_process_exports_from_any_folder(folder):
    """`python -m export` verifies in a fresh process and leaves the bundle alone behind."""
    root = Path(__file__).parents[2]
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "export", "../models.py:spec", "--out", "b", "--json"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["verified"] == ["cpu"]
    assert ran.stderr.endswith("verifying: checking rows of b2\n")
    assert [p.name for p in elsewhere.iterdir()] == ["b"]
    np.testing.assert_allclose(
        load(elsewhere / "b", "cpu").predict({"x": ROWS})["output"], ROWS @ W + B
    )
