"""docs/deploy-vertex.md shows what happens, as far as that can be seen without Google."""

import os
import re
import shlex
import sys
from pathlib import Path

from pytest import fixture, mark

from deploy import vertex
from tests.guide import alike, blocks, run_command
from tests.serving import ROOT

GUIDE = (ROOT / "docs" / "deploy-vertex.md").read_text()


@fixture(scope="module")
def reader(iris_bundle, tmp_path_factory):
    """Runs a command in a folder with the bundle of the serving guide."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bundle").symlink_to(iris_bundle)
    (folder / "deploy").symlink_to(ROOT / "deploy")
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HLOSERVE_GRPC_PORT": "-1",
        "HLOSERVE_DRAIN_DELAY_S": "0.5",
    }
    exports = next(text for kind, text in blocks(GUIDE) if kind == "sh")

    def run(command):
        status, printed = run_command(f"{exports}\n{command}", folder, environ)
        assert status == 0, printed
        return printed

    return run


def transcripts():
    """Return each console block of the guide: its command and what that prints."""
    for kind, text in blocks(GUIDE):
        if kind == "console":
            command, _, printed = text.removeprefix("$ ").partition("\n")
            yield command, printed


@mark.e2e
@mark.parametrize(("command", "shown"), list(transcripts()))
def test_commands_print_what_is_shown(reader, command, shown):
    """Every command that can run offline does, and prints what stands behind it."""
    printed = reader(command)

    assert alike(shown, printed), printed


def test_every_command_is_run_or_is_not_ours():
    """What the tests do not run is Google's, and each option that is named exists."""
    others = [line for kind, text in blocks(GUIDE) if kind == "sh" for line in text.splitlines()]
    known = {word for action in vertex.parser()._actions for word in action.option_strings}
    named = re.findall(r"^\| `(--[^`]+)` \| (?!on this)", GUIDE, re.MULTILINE)
    flags = {word for text in named for word in shlex.split(text) if word.startswith("--")}

    assert {line.split()[0] for line in others} == {"export", "gcloud", "curl"}
    assert flags - {"--bundle", "--cache-dir"} <= known
    assert "--service-account" in flags


def test_every_check_is_explained():
    """The doctor's checks are those of the table."""
    shown = next(text for command, text in transcripts() if "-- hloserve" in command)
    checks = [line[6:28].strip() for line in shown.splitlines() if line.startswith("pass")]
    rows = re.search(r"^\| check \|.*\n\|[-|]+\n((?:\|.*\n)+)", GUIDE, re.MULTILINE)[1]
    explained = [row.split("|")[1].strip() for row in rows.splitlines()]

    assert [name for name in checks if not any(name in row for row in explained)] == [
        *("1.5 MB body", "10 MB body"),
    ]
    assert "bodies" in explained
