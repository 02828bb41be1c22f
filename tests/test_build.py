"""`./build.sh setup` finds a Python and installs what the lock pins; nothing is really installed here."""

import re
import shutil
import stat
import subprocess
from pathlib import Path

from pytest import fixture, mark

ROOT = Path(__file__).resolve().parents[1]

# Stands in for a Python of some version: it reports whether it fits, and where it is.
PYTHON = """#!/bin/bash
case "$2" in
  *version_info*) exit {exit} ;;
  *executable*) echo "$0" ;;
esac
"""

# Stands in for uv: it records its arguments and makes what setup looks for.
UV = """#!/bin/bash
echo "$UV_PROJECT_ENVIRONMENT $*" >> {log}
if [ "$1" = sync ]; then
  mkdir -p "$UV_PROJECT_ENVIRONMENT/bin"
  ln -sf /bin/true "$UV_PROJECT_ENVIRONMENT/bin/python"
fi
"""


def script(path, text):
    """Write an executable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Project:
    """A copy of the project's build files, with a PATH of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "uv.log"
        for name in ("build.sh", "uv.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        for name in ("bash", "dirname", "cat", "cksum", "rm", "mkdir", "ln"):
            (folder / "bin").mkdir(exist_ok=True)
            (folder / "bin" / name).symlink_to(shutil.which(name))
        script(folder / "bin" / "uv", UV.format(log=self.log))

    def python(self, place, *, fits):
        """Put a Python somewhere below the project."""
        return str(script(self.folder / place, PYTHON.format(exit=0 if fits else 1)))

    def setup(self, *arguments, cwd=None, **environ):
        """Run `./build.sh setup`, from a folder."""
        home = {"PATH": str(self.folder / "bin"), "HOME": str(self.folder / "home")}
        return subprocess.run(
            [str(self.folder / "build.sh"), *(arguments or ("setup",))],
            cwd=cwd,
            env={**home, **environ},
            capture_output=True,
            text=True,
        )

    def calls(self):
        """Return the ways uv was called."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@fixture
def project(tmp_path):
    """A project where no Python is installed."""
    return Project(tmp_path)


def sync(python, environment=".venv", without=""):
    """Return how uv is called to install the lock for a Python."""
    return (
        f"{environment} sync -q --frozen --compile-bytecode --all-extras {without}--python {python}"
    )


def test_python_on_the_path_is_used(project):
    """A Python that is new enough is taken from the PATH; an older one is skipped."""
    project.python("bin/python3", fits=False)
    wanted = project.python("bin/python3.13", fits=True)

    project.setup()

    assert project.calls() == [sync(wanted)]


def test_the_variable_wins(project):
    """$PYTHON wins over the PATH."""
    project.python("bin/python3.12", fits=True)
    wanted = project.python("elsewhere/python", fits=True)

    project.setup(PYTHON=wanted)

    assert project.calls() == [sync(wanted)]


def test_an_old_python_in_the_variable_is_an_error(project):
    """A $PYTHON that is too old is an error, not skipped."""
    old = project.python("elsewhere/python", fits=False)
    project.python("bin/python3.12", fits=True)

    ran = project.setup(PYTHON=old)

    assert ran.returncode != 0
    assert f"error: PYTHON: expected Python 3.12 or later, got {old}" in ran.stderr
    assert project.calls() == []


def test_pyenv_versions_are_looked_at(project):
    """If the PATH has none, pyenv's versions are tried."""
    project.python("home/.pyenv/versions/3.11.0/bin/python", fits=False)
    wanted = project.python("home/.pyenv/versions/3.13.0/bin/python", fits=True)

    project.setup()

    assert project.calls() == [sync(wanted)]


def test_uv_provides_a_python_where_there_is_none(project):
    """Without any Python that fits, uv installs one."""
    project.setup()

    assert project.calls() == [sync("3.12")]


def test_a_second_setup_does_nothing(project):
    """Setting up again is quick; a changed lock is installed."""
    project.setup()
    project.setup()
    assert len(project.calls()) == 1

    with (project.folder / "uv.lock").open("a") as f:
        f.write("\n")
    project.setup()
    assert len(project.calls()) == 2


def test_a_first_look_leaves_tensorflow_out(project):
    """`run` needs no TensorFlow, the tests do; what is installed already is left as it is."""
    lean, whole = sync("3.12", without="--no-extra savedmodel --no-group docs "), sync("3.12")

    for command, calls in (
        ("run", [lean]),
        ("run", [lean]),
        ("setup", [lean, whole]),
        ("run", [lean, whole]),
    ):
        project.setup(command)
        assert project.calls() == calls


def test_a_copied_environment_is_set_up_again(project, tmp_path_factory):
    """An environment knows where its sources are, so a copy of the project gets its own."""
    project.setup()
    copy = tmp_path_factory.mktemp("copy") / "project"
    project.folder = shutil.copytree(project.folder, copy, symlinks=True)
    project.setup()

    assert len(project.calls()) == 2


def test_another_jax_gets_an_environment_of_its_own(project):
    """`test --jax V` installs that jax beside the locked environment."""
    project.setup("test", "--jax", "0.11.2")

    venv = ".venv-jax-0.11.2"
    assert project.calls() == [
        sync("3.12", venv),
        f" pip install -q --python {venv}/bin/python jax==0.11.2 jaxlib==0.11.2",
    ]


def test_an_unknown_command_shows_the_usage(project):
    """A typo gets the usage and exit status 2."""
    ran = project.setup("tset")

    assert ran.returncode == 2
    assert "usage: ./build.sh COMMAND" in ran.stderr


def test_docs_takes_one_option(project):
    """An unknown option is named, and nothing is set up for it."""
    ran = project.setup("docs", "--sevre")

    assert (ran.returncode, ran.stderr) == (
        2,
        "error: docs: expected nothing or --serve, got --sevre\n",
    )


@mark.parametrize(
    ("typed", "hint"),
    [
        ("tset", "; did you mean 'test'?"),
        ("imge", "; did you mean 'image'?"),
        ("rnu", "; did you mean 'run'?"),
        ("setups", "; did you mean 'setup'?"),
        ("RUN", ""),
        ("deploy", ""),
    ],
)
def test_an_unknown_command_is_named_with_the_nearest(project, typed, hint):
    """The last line names what was typed, the commands there are, and the one probably meant."""
    ran = project.setup(typed)

    assert ran.stderr.splitlines()[-1] == (
        f"error: command: expected run, test, check, docs, coverage, wheel, gpucheck, engines, image, setup, protos, got '{typed}'{hint}"
    )


def test_alone_it_says_what_there_is_to_do(project):
    """Without a command the usage has a line for each, and nothing is set up."""
    alone = project.setup("")
    asked = project.setup("--help")

    assert (alone.returncode, alone.stdout) == (2, "")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert alone.stderr == asked.stdout
    for command in ("run", "test", "check", "image", "setup", "protos"):
        assert re.search(rf"^  {command} .*  ?\w.* ", asked.stdout, re.MULTILINE)
    assert project.calls() == []
