"""`hloserve`: help, names and errors, with nothing heavy imported for any of them."""

import subprocess
import sys

from pytest import fixture, mark

from hloserve import cli
from hloserve.commands import COMMANDS, find
from runtime import invocation
from tests.hloserve.conftest import HLOSERVE
from tests.serving import ROOT

SCREEN_LINES, SCREEN_COLUMNS = 24, 100


@fixture
def hloserve(monkeypatch, capsys):
    """Run the command in this process, up to the point where another package takes over."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["hloserve", *words])
        return cli.main(), *capsys.readouterr()

    return call


@fixture
def called(monkeypatch):
    """Restore how this process was called."""
    monkeypatch.setattr(invocation._Process, "program", "")
    monkeypatch.setattr(invocation._Process, "command", "")
    return invocation.called_as


def test_help_is_one_screen_with_a_line_for_each_command(hloserve):
    """--help and -h show every command with what it does; no command shows the same as an error."""
    status, said, errors = hloserve("--help")

    lines = said.splitlines()
    assert (status, errors) == (0, "")
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    for command in COMMANDS:
        assert [line.endswith(command.summary) for line in lines].count(True) == 1
    assert hloserve("-h") == hloserve("help") == (0, said, "")
    assert hloserve() == (2, "", said)


@mark.parametrize(
    ("word", "hint"),
    [
        ("verfy", "; did you mean 'verify'?"),
        ("Export", "; did you mean 'export'?"),
        ("server", "; did you mean 'serve'?"),
        ("xyz", ""),
    ],
)
def test_an_unknown_command_gets_the_list_and_the_nearest(hloserve, word, hint):
    """A typo is one line: the commands there are, and the one that was probably meant."""
    known = ", ".join(command.words for command in COMMANDS)

    assert hloserve(word, "bundle/") == (
        2,
        "",
        f"hloserve: error: command: expected {known}, completion, got {word!r}{hint}\n",
    )


def test_an_unknown_option_is_named(hloserve):
    """An option in place of the command is one that is not there."""
    assert hloserve("--versoin") == (
        2,
        "",
        "hloserve: error: --versoin: no such option; did you mean '--version'?\n",
    )


def test_every_subcommand_of_the_packages_has_a_name():
    """What `python -m runtime` has as commands, `hloserve` has as well, under the same names."""
    from runtime.__main__ import parser

    (commands,) = [action for action in parser()._actions if action.choices]

    assert set(commands.choices) == {c.words for c in COMMANDS if c.package == "runtime"}


def test_the_longest_name_counts():
    """`serve bench` is a command of its own, and whatever else follows `serve` an option of it."""
    assert find(["serve", "bench", "--bundle"]).words == "serve bench"
    assert find(["serve", "--bundle"]).words == "serve"
    assert find(["export"]).words == "export"


def test_errors_and_advice_name_commands_as_they_were_called(called):
    """In a process that was started as `hloserve`, messages name `hloserve`; in others `python -m`."""
    text = "see python -m export, python -m runtime verify and python -m server bench"
    assert invocation.error_line(text) == f"error: {text}"
    assert invocation.spelled(text) == text

    called("hloserve", "inspect")

    expected = "see hloserve export, hloserve verify and hloserve serve bench"
    assert invocation.spelled(text) == expected
    assert invocation.error_line(text) == f"hloserve inspect: error: {expected}"


@mark.e2e
@mark.parametrize(
    ("words", "usage", "error"),
    [
        ("verify", "hloserve verify [-h]", "the following arguments are required: BUNDLE"),
        ("export", "hloserve export [-h]", "the following arguments are required: MODEL, --out"),
        (
            "serve",
            "hloserve serve --bundle DIR [option …]",
            "bundle: expected a directory, got none; pass --bundle DIR",
        ),
        (
            "serve bench",
            "hloserve serve bench --bundle DIR",
            "the following arguments are required: --bundle",
        ),
        (
            "serve doctor",
            "hloserve serve doctor --bundle DIR",
            "the following arguments are required: --bundle",
        ),
    ],
)
def test_usage_and_errors_name_the_command(run, tmp_path, words, usage, error):
    """Each command's usage and its errors begin with its name, as the user typed it."""
    status, said, _ = run(HLOSERVE, *words.split(), "--help", cwd=tmp_path)
    assert (status, said.startswith(f"usage: {usage}")) == (0, True)
    assert "python -m" not in said

    failed = run(HLOSERVE, *words.split(), cwd=tmp_path)
    assert failed == (2, "", f"hloserve {words}: error: {error}\n")


@mark.e2e
@mark.parametrize("command", [c.words for c in COMMANDS] + ["completion bash"])
def test_help_of_no_command_imports_jax(command):
    """What a command's options are is answered before anything that takes seconds is imported."""
    options = [] if command.startswith("completion") else ["--help"]
    code = (
        "import atexit, sys; sys.argv = ['hloserve', *sys.argv[1:]]\n"
        "atexit.register(lambda: print('jax' in sys.modules, 'flax' in sys.modules))\n"
        "from hloserve.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.stdout.splitlines()[-1].endswith("False False")


@mark.e2e
@mark.parametrize("words", [["--help"], ["--version"], ["verfy"], ["verify", "--help"]])
def test_nothing_heavy_is_imported_to_help(words):
    """Help, the version and a typo need neither NumPy nor JAX, nor what writes completion."""
    code = (
        "import sys; sys.argv = ['hloserve', *sys.argv[1:]]\n"
        "from hloserve.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print({'numpy', 'jax', 'flax', 'shtab'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout.splitlines()[-1] == "set()"
