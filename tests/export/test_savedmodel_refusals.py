"""A SavedModel that cannot be: one line that says why, and nothing left, the bundle neither."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytest import fixture, mark

from export import ExportError, TensorSpec, VerificationError, export_model, for_tensorflow
from export.errors import UsageError
from runtime import BundleError
from tests import in_tensorflow
from tests.export.conftest import verify_here
from tests.export.savedmodels import W, X, affine, in_one_process
from tests.serving import ROOT


@fixture(autouse=True)
def one_process(request, monkeypatch, tensorflow):
    """Take TensorFlow's steps in the process that stays; e2e tests start fresh ones."""
    if "e2e" not in request.keywords:
        monkeypatch.setattr(for_tensorflow, "_tensorflow", in_one_process(tensorflow))


@fixture
def refused(tmp_path, monkeypatch):
    """Return the message with which an export with a SavedModel is refused; nothing is left."""
    monkeypatch.setattr("export.verification._run", verify_here)

    def run(model, params=None, *, kind=ExportError, inputs=(X,), savedmodel="tf", **options):
        folder = tmp_path / "refused"
        given = {"buckets": (1, 2), "platforms": ("cpu",), **options}
        with pytest.raises(kind) as caught:
            export_model(
                model,
                params,
                inputs=inputs,
                out=folder / "bundle",
                savedmodel=folder / savedmodel if isinstance(savedmodel, str) else savedmodel,
                **given,
            )
        assert not folder.exists()
        assert "\n" not in str(caught.value)
        return str(caught.value).replace(str(folder), "FOLDER")

    return run


def accurate(params, x):
    """Use an accuracy argument that older versions of the operation lack."""
    return jax.lax.exp(x @ params["w"], accuracy=jax.lax.Tolerance(1e-3, 1e-3, 1))


def test_an_operation_without_an_older_form_is_named(refused):
    """One line names the operation, both versions and the way out; no bundle is left either."""
    message = refused(accurate, W, tf_stablehlo="1.8.0")

    assert re.sub(r"jax [\d.]+ writes it in StableHLO [\d.]+", "jax J writes it in S", message) == (
        "savedmodel: stablehlo.exponential, as jax J writes it in S, has no form in StableHLO "
        "1.8.0, which --tf-stablehlo asks for; use another operation in its place for inference, "
        "or a newer TensorFlow"
    )


def test_an_operation_that_tensorflow_lacks_is_named(refused):
    """A kernel that only JAX brings along is refused when the goldens run."""
    eye = {"eye": np.eye(3, dtype=np.float32)}
    message = refused(
        lambda p, x: jnp.linalg.cholesky(x @ jnp.swapaxes(x, 1, 2) + p["eye"]),
        eye,
        inputs=["x:float32[_,3,3]"],
        kind=VerificationError,
    )

    assert re.sub(r"[\d.]+\d cannot", "T cannot", message) == (
        "TensorFlow T cannot run the model: No FFI handler registered for lapack_spotrf_ffi on a "
        "platform Host (canonical host); use other operations for inference, or leave out "
        "--savedmodel"
    )


def unlike_in_tensorflow(params, x):
    """Answer otherwise where it is lowered for TensorFlow."""
    return x @ params["w"] + (0 if jax.config.jax_use_shardy_partitioner else 1)


def test_a_savedmodel_that_answers_otherwise_is_refused(refused):
    """Where a golden does not match, the message names it, and the difference."""
    message = refused(unlike_in_tensorflow, W, kind=VerificationError)

    assert re.match(
        r"the SavedModel does not answer as the model does, in TensorFlow [\d.]+ on cpu: b2, "
        r"output 'output'\[.*max \|Δ\| 1, accepted",
        message,
    )


def test_a_platform_that_tensorflow_does_not_have_is_refused(refused, monkeypatch):
    """A GPU that only JAX has cannot verify a SavedModel."""
    monkeypatch.setattr("export.verification.available", lambda _: [])
    monkeypatch.setattr("export.verification.refuse_unverifiable", lambda _: None)

    assert refused(affine, W, platforms=("cuda",)) == (
        "savedmodel: expected a platform that TensorFlow has here, to verify it on, got cuda and "
        "a TensorFlow with cpu; add cpu, or pass --unverified"
    )


@mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                {"tf_stablehlo": version},
                f"tf_stablehlo: expected a version such as 1.13.7, got {version!r}",
            )
            for version in (
                "1.13",
                "v1.13.7",
                "01.13.7",
                "1.13.9999999999",
                "1.13.\N{ARABIC-INDIC DIGIT SEVEN}",
                "",
            )
        ),
        (
            {"tf_stablehlo": "1.13.0", "savedmodel": None},
            "tf_stablehlo: expected a savedmodel with it, got none",
        ),
    ],
)
def test_a_version_that_is_none_is_wrong_usage(refused, options, message):
    """Versions have three parts, and need a SavedModel to be of."""
    assert refused(affine, W, kind=UsageError, **options) == message


def test_a_stablehlo_of_no_known_version_is_refused(refused):
    """There is an oldest one."""
    assert refused(affine, W, tf_stablehlo="0.1.0") == (
        "tf_stablehlo: expected 0.9.0 or later, got 0.1.0"
    )


@mark.parametrize("inside", ["bundle", "bundle/tf", "."])
def test_a_savedmodel_is_written_apart_from_the_bundle(refused, inside):
    """Neither is written into the other."""
    message = refused(affine, W, savedmodel=inside)

    place = os.path.normpath(f"FOLDER/{inside}")
    assert message == f"savedmodel: expected a directory apart from the bundle, got {place}"


def test_a_place_that_is_none_is_refused(refused):
    """A number is no path."""
    assert refused(affine, W, savedmodel=7) == "savedmodel: expected a path, got 7"


@mark.parametrize("name", ["x.y", "_x", "größe", "9"])
def test_a_name_that_tensorflow_would_change_is_refused(refused, name):
    """An input 'x.y' would become 'x_y' there."""
    spec = TensorSpec(name=name, dtype="float32", shape=("_", 3))

    assert refused(affine, W, inputs=[spec]) == (
        f"input {name!r}: expected a letter, then letters, digits and _ for a SavedModel: "
        "TensorFlow changes other names"
    )


@mark.parametrize("name", ["class", "None", "self"])
def test_a_name_that_tensorflow_cannot_call_with_is_refused(refused, name):
    """A signature is called with its inputs by name."""
    assert refused(affine, W, inputs=[f"{name}:float32[_,3]"]) == (
        f"input {name!r}: expected a name that is no word of Python's for a SavedModel: "
        "TensorFlow calls functions with it"
    )


def test_names_that_tensorflow_takes_for_one_are_refused(refused):
    """There 'X' and 'x' are the same."""
    message = refused(
        lambda p, X, x: X @ p["w"] + x @ p["w"],  # noqa: N803 (the name is the point)
        W,
        inputs=["X:float32[_,3]", "x:float32[_,3]"],
    )

    assert message == (
        "inputs 'X' and 'x': expected names that differ in more than case for a SavedModel: "
        "TensorFlow changes one of them"
    )


@mark.parametrize("package", ["tensorflow", "tensorflow_serving"])
def test_without_tensorflow_the_extra_is_named(refused, monkeypatch, package):
    """The missing package, and how to install it, is reported before any work is done."""
    monkeypatch.setitem(sys.modules, package, None)

    assert refused(affine, W) == (
        f"savedmodel: needs {package}, which is not installed; pip install 'hloserve[savedmodel]'"
    )


def test_a_calling_convention_that_tensorflow_does_not_know_is_refused(tensorflow):
    """Both versions are named."""
    _, version = tensorflow(in_tensorflow.reads)

    assert tensorflow(in_tensorflow.refused_convention, 9, 8) == (
        "savedmodel: this jax writes calling convention 9 or later, "
        f"TensorFlow {version} knows up to 8; use a newer TensorFlow"
    )


@mark.parametrize(
    ("code", "message"),
    [
        ("pass", "SIGABRT"),
        ("os.write(2, b'2026 I: fine\\nF: no such flag\\n')", "SIGABRT, F: no such flag"),
    ],
)
@mark.e2e
def test_a_process_that_crashes_is_reported(refused, monkeypatch, code, message):
    """A crash in TensorFlow is reported in one line with its last output, and leaves nothing."""
    monkeypatch.setattr(for_tensorflow, "_CHILD", f"import os; {code}; os.abort()")

    assert refused(affine, W, kind=VerificationError) == (
        f"the model ends the process that runs it in TensorFlow: {message}; use other operations "
        "for inference, or leave out --savedmodel"
    )


@mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("print('not JSON')", "exit status 0"),
    ],
)
@mark.e2e
def test_a_tensorflow_that_cannot_be_used_is_reported(refused, monkeypatch, code, message):
    """One that is too old for the NumPy here does not even start; it is tried once."""
    monkeypatch.setattr(for_tensorflow, "_CHILD", code)
    steps = []

    said = refused(affine, W, progress=steps.append)

    assert re.sub(r"tensorflow[\w-]* [\d.]+\d", "tensorflow T", said) == (
        f"savedmodel: tensorflow T cannot be used: {message}; is it what pip install "
        "'hloserve[savedmodel]' brings?"
    )
    assert steps[-1] == "making the SavedModel in TensorFlow"
    assert steps.count(steps[-1]) == 1


def export_both(folder, params=W, **more):
    """Export the model as a bundle and as a SavedModel, into two places of a folder."""
    return export_model(
        *(affine, params),
        inputs=[X],
        buckets=(1,),
        platforms=("cpu",),
        out=folder / "bundle",
        savedmodel=folder / "tf",
        **more,
    )


@mark.e2e
def test_a_full_disk_is_one(tmp_path, monkeypatch):
    """Where TensorFlow cannot write, its words become an OSError with the place."""
    monkeypatch.setattr("export.verification._run", verify_here)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    monkeypatch.setattr(for_tensorflow, "_CHILD", limited + for_tensorflow._CHILD)

    with pytest.raises(OSError, match="File too large") as caught:
        export_both(tmp_path, {"w": np.ones((3, 1000), np.float32)})

    assert caught.value.filename == str(tmp_path / "tf")
    assert list(tmp_path.iterdir()) == []


def test_whatever_goes_wrong_in_tensorflows_process_is_reported(tmp_path, tensorflow):
    """An error of any kind is an answer, with the version that it happened in."""
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"bundle": str(tmp_path), "target": "tf"}))

    steps = tensorflow(in_tensorflow.step, "build", str(recipe))

    _, version = tensorflow(in_tensorflow.reads)
    assert steps["failed"].startswith(f"TensorFlow {version} cannot run the model: BundleError: ")


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    """Ctrl-C while TensorFlow works removes both stagings."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("export.verification._run", verify_here)
    monkeypatch.setattr(for_tensorflow, "_tensorflow", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_both(tmp_path)
    assert list(tmp_path.iterdir()) == []


@mark.e2e
def test_an_interruption_ends_tensorflows_process(tmp_path, monkeypatch):
    """After Ctrl-C no process is left that could write to the staging directory."""
    code = f"import os, signal; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); signal.pause()"
    monkeypatch.setattr(for_tensorflow, "_CHILD", code)

    def interrupt():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            os.sched_yield()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        for_tensorflow._tensorflow("build", "recipe")

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


_STUCK = """
import sys
from export import {module} as module
head = module._CHILD.partition("from {work}")[0]
module._CHILD = head + "file = open(sys.argv[-1], 'w', 1); print('here', file=file); import signal; signal.pause()"
{call}
"""


@mark.parametrize(
    ("module", "work", "call"),
    [
        ("for_tensorflow", "export.savedmodel", "module._tensorflow(sys.argv[1])"),
        (
            "verification",
            "runtime.__main__",
            "module._run('b', sys.argv[1], [], print)",
        ),
    ],
)
@mark.e2e
def test_a_killed_export_takes_its_processes_along(tmp_path, module, work, call):
    """After kill -9 no process is left that could write where the next export cleans up."""
    os.mkfifo(tmp_path / "held")
    code = _STUCK.format(module=module, work=work, call=call)
    command = [sys.executable, "-c", code, str(tmp_path / "held")]
    # Without waiting for a writer, which never comes from an export that fails.
    descriptor = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    with (
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as export,
        os.fdopen(descriptor) as held,
    ):
        assert select.select([held], [], [], 60)[0], export.kill()
        assert held.readline() == "here\n"
        export.kill()
        # At its end of file once no process has it open for writing.
        assert select.select([held], [], [], 60)[0]
        assert held.read() == ""


@mark.parametrize("occupied", ["bundle", "tf"])
def test_both_are_written_or_neither(tmp_path, monkeypatch, occupied):
    """Where one cannot be put in place at the end, the other does not appear."""
    monkeypatch.setattr("export.verification._run", verify_here)

    def occupy(sentence):
        if sentence.startswith("verifying the SavedModel"):
            (tmp_path / occupied).mkdir()
            (tmp_path / occupied / "thesis.txt").write_text("years of work")

    with pytest.raises(BundleError, match="exists"):
        export_both(tmp_path, progress=occupy)

    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == [
        occupied,
        f"{occupied}/thesis.txt",
    ]


def test_a_link_into_the_bundle_is_seen_through(tmp_path):
    """A SavedModel below the bundle by another name would be replaced with it."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "link").symlink_to("bundle")

    with pytest.raises(ExportError) as caught:
        export_model(
            *(affine, W),
            inputs=[X],
            platforms=("cpu",),
            out=tmp_path / "bundle",
            savedmodel=tmp_path / "link" / "tf",
            overwrite=True,
        )

    place = tmp_path / "bundle" / "tf"
    assert str(caught.value) == (
        f"savedmodel: expected a directory apart from the bundle, got {place}"
    )


def test_a_savedmodel_is_replaced_only_when_asked(command, folder):
    """Through the command line: one that is there stays, without --overwrite, and so does all."""
    words = ("models.py:spec", "--out", "bundle", "--savedmodel", "models/a/1", "--json")
    first = command(*words)
    assert first.status == 0, first.err
    assert first.json["savedmodel"]["signatures"]["predict"] == "x: float32[_, 3]"
    before = (folder / "models/a/1/saved_model.pb").stat().st_ino

    again = command("models.py:spec", "--out", "other", "--savedmodel", "models/a/1")
    assert again.error == (
        f"SavedModel {folder}/models/a/1: exists; pass --overwrite to replace it"
    )
    assert not (folder / "other").exists()
    assert (folder / "models/a/1/saved_model.pb").stat().st_ino == before

    assert command(*words, "--overwrite").status == 0
    assert (folder / "models/a/1/saved_model.pb").stat().st_ino != before
    assert sorted(path.name for path in (folder / "models/a").iterdir()) == ["1"]


def test_a_directory_that_is_no_savedmodel_is_left_alone(tmp_path):
    """Not even --overwrite replaces files of another kind."""
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "thesis.txt").write_text("years of work")

    with pytest.raises(BundleError) as caught:
        export_model(
            *(affine, W),
            inputs=[X],
            out=tmp_path / "bundle",
            savedmodel=tmp_path / "tf",
            overwrite=True,
        )

    message = "exists and is not a SavedModel; it is left alone"
    assert str(caught.value) == f"SavedModel {tmp_path}/tf: {message}"
    assert [path.name for path in tmp_path.iterdir()] == ["tf"]


def test_a_dry_run_lowers_and_writes_nothing(command, folder):
    """Problems with the SavedModel are reported, without starting TensorFlow."""
    before = sorted(folder.iterdir())
    done = command("models.py:spec", "--out", "b", "--savedmodel", "s", "--dry-run")

    assert done.status == 0
    assert "lowering for TensorFlow with any batch" in done.err
    assert sorted(p for p in folder.iterdir() if p.name != "__pycache__") == before


def test_a_savedmodel_is_no_model(command, folder):
    """A folder that TensorFlow saved is refused, with what to export in its place."""
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"")

    ran = command("saved", "--out", "b")

    assert (ran.status, ran.err) == (
        2,
        (
            "error: model 'saved': expected a model of JAX, got a SavedModel, a graph of TensorFlow; export what it was "
            "saved from, of Keras the .keras file or the Python that builds the model\n"
        ),
    )
