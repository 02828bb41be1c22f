"""Installed, the commands run from any directory."""

import email
import importlib.metadata
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

from pytest import fixture, mark

import runtime

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("export", "hloserve", "runtime", "server")


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
    The wheel has every file of the packages, the licence and the command.
    """
    found = (p for name in PACKAGES for p in (ROOT / name).rglob("*.*") if p.suffix != ".pyc")
    sources = {str(path.relative_to(ROOT)) for path in found}

    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}

    about = {name.rpartition("/")[2] for name in files if ".dist-info/" in name}
    assert {name for name in files if ".dist-info/" not in name} == sources
    assert about == {"METADATA", "RECORD", "WHEEL", "LICENSE", "entry_points.txt"}


def test_wheel_is_lean_without_extras(wheel):
    """
    Without extras the wheel requires what runs a bundle; the exporter and the server are extras.
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
def test_the_command_of_an_installed_wheel_runs(wheel, tmp_path):
    """
    Installed into an environment of its own, `hloserve` is the command, and exports a model there.
    """
    venv.create(tmp_path / "venv", with_pip=True)
    python, command = (tmp_path / "venv" / "bin" / name for name in ("python", "hloserve"))
    # The wheel's requirements are installed from here, and none of our packages are.
    (others,) = {path for path in sys.path if path.endswith("site-packages")}
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True
    )
    (site / "others.pth").write_text(others)
    (tmp_path / "model.py").write_text(
        "from hloserve import ExportSpec\n\n\n"
        "def double(params, x):\n    return x * 2\n\n\n"
        "spec = ExportSpec(model=double, params={}, inputs=['x:float32[_,2]'], buckets=(1,), "
        "platforms=('cpu',))\n"
    )

    def ran(*words):
        done = subprocess.run([command, *words], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout

    where = [python, "-c", "import hloserve, export, runtime; print(runtime.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True).stdout
    assert found == f"{site / 'runtime' / '__init__.py'}\n"
    assert ran("--version") == (0, f"hloserve {importlib.metadata.version('hloserve')}\n")
    status, said = ran("export", "model.py:spec", "--out", "bundle")
    assert (status, said.splitlines()[-1]) == (
        0,
        "bundle   bundle; next: hloserve serve --bundle bundle",
    )
    assert ran("verify", "bundle")[0] == 0


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
