"""`--version` of every command comes from one place."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

from pytest import mark, raises

import deploy.vertex
import export.__main__
import runtime
import runtime.__main__
import server.bench.cli
import server.doctor.cli
from runtime import release
from server.options import parse
from server.protocols.oip import SERVER_VERSION

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@mark.parametrize(
    "run",
    [
        lambda: runtime.__main__.main(["--version"]),
        lambda: runtime.__main__.main(["verify", "--version"]),
        lambda: runtime.__main__.main(["refresh", "--version"]),
        lambda: parse(["--version"], {}),
        lambda: server.bench.cli.main(["--version"], {}),
        lambda: server.doctor.cli.main(["--version"], {}),
        lambda: deploy.vertex.main(["--version"]),
        lambda: sys.exit(export.__main__.main(["--version"])),
    ],
    ids=["runtime", "verify", "refresh", "server", "bench", "doctor", "vertex", "export"],
)
def test_every_command_says_which_version_it_is(run, capsys):
    """Whatever else a command needs, --version alone prints the name and version and ends well."""
    with raises(SystemExit) as caught:
        run()

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"hloserve {VERSION}\n"


@mark.e2e
@mark.parametrize("package", ["export", "hloserve", "runtime", "server"])
def test_processes_say_it_from_any_directory(package, tmp_path):
    """The version is that of the code that runs, wherever it is run."""
    command = [sys.executable, "-m", package, "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"hloserve {VERSION}\n", "")


def test_a_models_version_needs_its_digits(capsys):
    """`export --version` with more words is the model's version, and never a success by mistake."""
    with raises(SystemExit) as caught:
        export.__main__.main(["m.py:spec", "--out", "b", "--version"])

    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: argument --version: expected one argument\n"


def test_the_version_is_written_once(tmp_path, monkeypatch):
    """Everything that reports the version reads pyproject.toml; where there is none, the installed metadata."""
    assert runtime.__version__ == SERVER_VERSION == release.version() == VERSION

    other = tmp_path / "pyproject.toml"
    monkeypatch.setattr(release, "_PROJECT", other)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"installed {name}")
    assert release.version() == "installed hloserve"
    other.write_text('[project]\nname = "somebody-elses"\nversion = "7"\n')
    assert release.version() == "installed hloserve"


def test_an_unknown_version_is_no_error(tmp_path, monkeypatch):
    """Sources that were copied without anything else still run."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(release, "_PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(importlib.metadata, "version", missing)

    assert release.version() == "unknown"


@mark.e2e
@mark.parametrize(
    ("used", "last"),
    [
        ("import runtime", "ImportError: "),
        ("import export", "ImportError: "),
        ("import server", "ImportError: "),
        ("import hloserve; hloserve.load", "ImportError: "),
        ("from hloserve.cli import main; sys.exit(main())", "hloserve: error: "),
    ],
)
def test_an_older_python_is_named(used, last):
    """A checkout run by an older Python reports which version it needs, and which it got."""
    code = (
        "import collections, sys; sys.version_info = collections.namedtuple('V', 'major minor')"
        f"(3, 11); {used}"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ran.stderr.splitlines()[-1] == (
        f"{last}hloserve: expected Python 3.12 or later, got 3.11, {sys.executable}"
    )
