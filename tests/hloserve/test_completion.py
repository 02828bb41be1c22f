"""Shell completion, tried in the shells that are here."""

import re
import shutil
import subprocess
import sys

from pytest import fixture, mark

from hloserve import cli
from hloserve.commands import COMMANDS, SHELLS
from tests.hloserve.conftest import HLOSERVE

pytestmark = mark.e2e


@fixture(scope="module")
def scripts():
    """The script for each shell, as a user gets it."""
    return {
        shell: subprocess.run(
            [HLOSERVE, "completion", shell], cwd="/", capture_output=True, text=True, check=True
        ).stdout
        for shell in SHELLS
    }


@mark.parametrize("shell", SHELLS)
def test_all_commands_and_their_options_are_completed(scripts, shell):
    """Each script completes every command, and options of each package's commands."""
    for command in COMMANDS:
        assert command.words.split()[-1] in scripts[shell]
    for option in ("params-path", "require-digest", "max-queue-delay-ms", "connections", "start-s"):
        assert option in scripts[shell]


@mark.parametrize("shell", SHELLS)
def test_shells_read_their_script(scripts, shell, tmp_path):
    """Where a shell is installed it accepts its script."""
    if shutil.which(shell):
        file = tmp_path / "script"
        file.write_text(scripts[shell])
        subprocess.run([shell, "-n", file], check=True)


@mark.parametrize(
    ("typed", "completed"),
    [
        ("hloserve ve", {"verify"}),
        ("hloserve serve --max-queue", {"--max-queue-delay-ms", "--max-queue-rows"}),
        ("hloserve serve doc", {"doctor"}),
        ("hloserve verify --dev", {"--device"}),
        ("hloserve verify bun", {"bundle"}),
        ("hloserve completion z", {"zsh"}),
    ],
)
def test_bash_completes(scripts, typed, completed, tmp_path):
    """In bash, TAB completes commands, options and directories."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "script").write_text(scripts["bash"])
    (function,) = re.findall(r"complete .*-F (\w+) hloserve", scripts["bash"])
    ask = (
        f"source ./script; COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        f'COMP_LINE="{typed}"; COMP_POINT=${{#COMP_LINE}}; '
        f'{function} hloserve "${{COMP_WORDS[COMP_CWORD]}}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)

    assert {word.strip() for word in done.stdout.split()} == completed


@mark.parametrize(
    ("words", "got"), [([], "none"), (["bsh"], "bsh; did you mean 'bash'?"), (["a", "b"], "a b")]
)
def test_other_shells_are_refused(monkeypatch, capsys, words, got):
    """A shell that is none of them is named, with those there are."""
    monkeypatch.setattr(sys, "argv", ["hloserve", "completion", *words])

    assert cli.main() == 2
    assert capsys.readouterr().err == (
        f"hloserve completion: error: shell: expected bash, zsh, fish, got {got}\n"
    )
