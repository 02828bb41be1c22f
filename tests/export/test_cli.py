"""`python -m export`: what a MODEL can be, and what every flag does."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export import Text, export_model
from export.parser import parser
from export.spec import ExportSpec
from runtime import load
from runtime.entries import OutputFormat
from runtime.signature import Axis, TensorSpec

W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.array([10, 20], np.float32)
ROWS = np.array([[1, 2, 3], [0, -1, 0.5], [4, 0, 0]], np.float32)
X = "x:float32[_,3]"
SMALL = ("--buckets", "1,2", "--platforms", "cpu")

pytestmark = pytest.mark.usefixtures("folder")


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
    (package / "affine.py").write_text(
        (folder / "models.py").read_text() + "\nclass zoo:\n    best = spec\n"
    )
    monkeypatch.syspath_prepend(folder)

    assert command("shop.vision.affine:zoo.best", "--out", "b").status == 0
    assert load("b", "cpu").manifest.name == "from-spec"


def test_a_flag_wins_over_the_spec(command):
    """A flag replaces the spec's field; what no flag names stays."""
    ran = command("models.py:spec", "--version", "7", "--buckets", "2,4", "--out", "b", "--dry-run")
    whole = command("models.py:spec", "--version", "7", "--json", "--out", "b", "--dry-run").json

    assert ran.status == 0
    assert (whole["name"], whole["version"]) == ("from-spec", "7")


@pytest.mark.parametrize(("buckets", "hints"), [("2,4", 1), ("1,64", 0), ("128", 0)])
def test_a_bucket_for_batch_prediction_is_recommended(command, buckets, hints):
    """Without buckets of 64 and more a note states the batch size of Vertex AI's batch prediction."""
    ran = command("models.py:spec", "--buckets", buckets, "--out", "b", "--dry-run")
    hint = (
        "for Vertex AI batch prediction add 64 to --buckets: it sends 64 instances a request, "
        "the largest bucket is 4"
    )

    assert ran.out.splitlines().count(hint) == hints
    assert ran.out.count("batch prediction") == hints


@pytest.mark.parametrize(
    ("model", "params"), [("Dense", "dense"), ("Net", "net"), ("make_dense", "dense")]
)
def test_config_names_the_keys_it_ignores(command, model, params):
    """--config passes constructor arguments and reports the keys that the model does not take."""
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
        *("--input", "extra:float32[_,4]", "--axis", "seq=2..4,8", "--range", "ids=3:49"),
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
        TensorSpec(name="mask", dtype="int8", shape=("_", "seq"), mask=True, minimum=0, maximum=1),
        TensorSpec(name="extra", dtype="float32", shape=("_", 4)),
    )
    assert m.signature.axes == (Axis(name="seq", sizes=(4, 8), minimum=2),)
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
    of_texts = {"text_inputs": "input_ids", "text_pairs": "pair", "truncated": "truncate"}
    of_images = {"images", "image_options"}
    of_running = {"help", "out", "overwrite", "dry_run", "json", "config"}
    of_running |= {"savedmodel", "tf_stablehlo", "check_gpu"}
    known = {f.name for f in dataclasses.fields(TensorSpec)}

    assert field in flags
    fields = {f.name for f in dataclasses.fields(ExportSpec)}
    assert flags - fields == of_running | set(of_inputs) | set(of_texts) | of_images
    assert set(of_inputs.values()) <= known
    assert set(of_texts.values()) <= {f.name for f in dataclasses.fields(Text)}


def test_a_spec_has_defaults_for_serving_anywhere():
    """By default an export is for CPU and CUDA, at the usual batch sizes."""
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
    """A format names its output, and whether that has probabilities."""
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
        (
            "lables.txt",
            (
                "--labels: expected a,b,c or a file with a name on each line, got 'lables.txt', "
                "which is no file"
            ),
        ),
        ("latin.txt", "--labels latin.txt: expected text in UTF-8, got the byte 0xf6 in line 1"),
        ("crane,gull,crane", "labels: expected each name once, got 'crane' twice"),
    ],
)
def test_labels_that_name_no_classes_are_refused(command, words, message):
    """A file that is not there is no label; and of two classes of one name one would be lost."""
    Path("latin.txt").write_bytes(b"\xf6de\nleer\n")
    ran = command("models.py:spec", "--labels", words, "--out", "b")

    assert (ran.status, ran.error) == (2, message)


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
        "running the un-exported model op by op (1/1)",
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
