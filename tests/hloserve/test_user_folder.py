"""Commands, and the processes that they start, in a folder with files of our packages' names."""

import subprocess
import sys

import numpy as np
from pytest import mark

from runtime import load
from tests.hloserve.conftest import HLOSERVE, MODEL, put
from tests.serving import TIMEOUT_S, free_port, post, ready_line, start

pytestmark = mark.e2e


@mark.parametrize("program", [(HLOSERVE,), (sys.executable, "-m", "hloserve")], ids=["", "-m"])
@mark.parametrize("model", ["model.py:spec", "model:spec"])
def test_a_model_beside_them_is_exported(theirs, run, program, model):
    """The exporter and its child are ours; the model and what it imports are the user's."""
    status, _, errors = run(*program, "export", model, "--out", "bundle", cwd=theirs)

    assert (status, errors.count("the user has")) == (0, 0)
    answers = load(theirs / "bundle", "cpu").predict({"x": np.float32([[1, 2]])})
    assert answers["output"].tolist() == [[2, 4]]


@mark.parametrize("name", ["export", "runtime", "server"])
def test_a_model_may_lie_in_such_a_file(tmp_path, run, name):
    """A model's file that is called as one of our packages is taken by its path."""
    source = "from __future__ import annotations\n\n" + MODEL.replace(
        "from helper import double", "def double(params, x):\n    return x * params['w']\n"
    )
    (tmp_path / f"{name}.py").write_text(source)

    command = (HLOSERVE, "export", f"{name}.py:spec", "--out", "bundle", "--dry-run")
    status, said, _ = run(*command, cwd=tmp_path)

    assert (status, said.splitlines()[-1]) == (0, "dry run: nothing was written")


@mark.parametrize(
    "words",
    [
        "inspect",
        "verify",
        "verify --startup",
        "bench --seconds 0.01",
        "compile --cache cache",
        "doctor",
        "refresh --out new",
    ],
)
def test_every_command_of_the_runtime_runs(theirs, run, classifier_bundle, words):
    """Processes that compile, open and run a bundle run there."""
    name, *options = words.split()
    status, said, errors = run(HLOSERVE, name, classifier_bundle, *options, cwd=theirs)

    assert (status, (said + errors).count("the user has")) == (0, 0)
    assert said != ""


@mark.parametrize(
    ("package", "others", "arguments"),
    [
        ("export", ("runtime", "server"), ("model.py:spec", "--out", "bundle")),
        ("runtime", ("export", "server"), ("doctor", "{bundle}")),
        ("runtime", ("export", "server"), ("compile", "{bundle}", "--cache", "cache")),
        (
            "server",
            ("runtime", "export"),
            ("bench", "--bundle", "{bundle}", "--seconds", ".1"),
        ),
    ],
    ids=["export", "doctor", "compile", "bench"],
)
def test_packages_find_each_other(theirs, run, classifier_bundle, package, others, arguments):
    """`python -m` with one of our packages runs beside files that are called as the others."""
    (theirs / f"{package}.py").unlink()
    put(theirs, *others)
    words = [word.format(bundle=classifier_bundle) for word in arguments]

    status, _, errors = run(sys.executable, "-m", package, *words, cwd=theirs)

    assert (status, errors.count("the user has")) == (0, 0)


def test_all_processes_of_a_server_answer(theirs, classifier_bundle):
    """The process that opens the bundle first, and the worker, run our packages."""
    port = free_port()
    process = start(
        port,
        *("--bundle", str(classifier_bundle), "--processes", "2"),
        command=("-m", "hloserve", "serve"),
        options={"cwd": theirs},
        HLOSERVE_REQUIRE_DIGEST="",
    )
    with process:
        ready_line(process)
        status, answer = post(f"http://127.0.0.1:{port}/predict", b'{"instances": [[1, 2, 3, 4]]}')
        process.terminate()
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert (status, len(answer["predictions"])) == (200, 1)
    assert (process.returncode, errors) == (0, "")


def test_gunicorn_has_a_factory(theirs, classifier_bundle):
    """`hloserve.wsgi:create()` is the application where `server.wsgi` would be the user's."""
    port = free_port()
    command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "hloserve.wsgi:create()"]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=theirs,
        env={"HLOSERVE_BUNDLE": str(classifier_bundle), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    with process:
        for line in process.stderr:
            if "Booting worker" in line:
                break
        waiting = post(f"{url}/predict", b'{"instances": [[1, 2, 3, 4]]}')
        ready_line(process)
        status, answer = post(f"{url}/predict", b'{"instances": [[1, 2, 3, 4]]}')
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)

    assert waiting[0] == 503
    assert (status, len(answer["predictions"])) == (200, 1)


@mark.parametrize("name", ["export", "runtime", "server"])
def test_the_error_names_the_file_that_is_in_the_way(tmp_path, run, name):
    """Beside a file that would be taken for one of our packages, `import hloserve` names it."""
    put(tmp_path, name)
    (tmp_path / "train.py").write_text("import hloserve")

    for command in (("-c", "import hloserve"), ("train.py",)):
        status, _, errors = run(sys.executable, *command, cwd=tmp_path)

        assert status == 1
        assert errors.splitlines()[-1].startswith(
            f"ImportError: package {name!r}: expected hloserve's own, "
        )
        assert errors.splitlines()[-1].endswith(
            f", got {tmp_path / name}.py; rename that file, which Python finds first"
        )


def test_a_program_from_elsewhere_is_served(theirs, run):
    """A tool that runs in the folder without being of it, as pytest does, gets our packages."""
    (theirs / "tools").mkdir()
    (theirs / "tools" / "tool.py").write_text(
        "import sys\n"
        "sys.path.insert(0, '.')\n"
        "from hloserve import ExportSpec, load\n"
        "print(ExportSpec.__module__, load.__module__)\n"
    )

    done = run(sys.executable, "tools/tool.py", cwd=theirs)

    assert done == (0, "export.spec runtime.loading\n", "")


@mark.parametrize(
    "used", ["import export", "import server", "hloserve.load", "hloserve.export_model"]
)
def test_a_module_that_was_imported_before_is_named(tmp_path, run, used):
    """Where a program has imported its own runtime.py, ours says so in one line."""
    (tmp_path / "runtime.py").write_text("")
    code = f"import hloserve, sys; sys.path.insert(0, {str(tmp_path)!r}); import runtime; {used}"

    status, _, errors = run(sys.executable, "-c", code, cwd="/")

    assert status == 1
    assert "ImportError: package 'runtime': expected hloserve's own, " in errors.splitlines()[-1]
    assert f", got {tmp_path / 'runtime.py'}; rename that file" in errors.splitlines()[-1]
