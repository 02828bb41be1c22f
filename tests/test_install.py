"""Installed, the commands run from any directory."""

import email
import importlib.metadata
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from pytest import fixture, mark

import runtime

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("export", "runtime", "server")


def run(*command, cwd, **environ):
    """Run Python in a directory, with no path but what is installed or given."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**inherited, **environ},
        capture_output=True,
        text=True,
    )


@fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip would build here."""
    out = tmp_path_factory.mktemp("wheel")
    backend = Path(sys.executable).with_name("uv-build")
    built = subprocess.run(
        [backend, "build-wheel", out], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return out / built.stdout.split()[-1]


@mark.e2e
@mark.parametrize("package", PACKAGES)
def test_commands_run_from_any_directory(tmp_path, package):
    """
    In the project's environment a command works wherever a user's files are.
    """
    done = run("-m", package, "--help", cwd=tmp_path)

    assert (done.returncode, done.stdout.splitlines()[0].split()[:4]) == (
        0,
        ["usage:", "python", "-m", package],
    )


@mark.e2e
def test_file_of_the_same_name_can_be_passed_over(tmp_path):
    """
    Beside a training script that is called export.py, `python -P -m export` is the exporter.
    """
    (tmp_path / "export.py").write_text("raise SystemExit('mine')")

    assert run("-m", "export", "--help", cwd=tmp_path).stderr == "mine\n"
    assert run("-P", "-m", "export", "--help", cwd=tmp_path).returncode == 0


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    """
    The wheel has every file of the three packages, and the licence.
    """
    found = (p for name in PACKAGES for p in (ROOT / name).rglob("*.*") if p.suffix != ".pyc")
    sources = {str(path.relative_to(ROOT)) for path in found}

    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}

    about = {name.rpartition("/")[2] for name in files if ".dist-info/" in name}
    assert {name for name in files if ".dist-info/" not in name} == sources
    assert about == {"METADATA", "RECORD", "WHEEL", "LICENSE"}


def test_wheel_is_lean_without_extras(wheel):
    """
    Without extras the wheel asks for what runs a bundle; the exporter and the server are extras.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        about = email.message_from_bytes(archive.read(name))

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [text for text in about.get_all("Requires-Dist") if "extra ==" not in text]
    assert len(needed) == len(project["dependencies"])
    assert set(about.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert about["Version"] == runtime.__version__ == importlib.metadata.version("hloserve")


@mark.e2e
def test_wheel_works_without_the_repository(wheel, classifier_bundle, tmp_path):
    """
    What the wheel holds is enough to verify a bundle, far from the sources.
    """
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    where = "import runtime; print(runtime.__file__)"
    path = {"PYTHONPATH": str(installed)}

    assert run("-c", where, cwd=tmp_path, **path).stdout.startswith(str(installed))
    done = run("-m", "runtime", "verify", str(classifier_bundle), cwd=tmp_path, **path)
    assert (done.returncode, done.stdout[:3]) == (0, "ok:")
