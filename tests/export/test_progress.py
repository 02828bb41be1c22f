"""What a script shows of an export: a line that changes on a terminal, and nothing elsewhere."""

import os
import pty
import subprocess
import sys

from pytest import fixture, mark

from tests.serving import ROOT

SCRIPT = """\
from export import export_model
from model import double

report = export_model(double, {}, inputs=["x:float32[_,2]"], buckets=(1,), platforms="cpu", out="b")
print(report)
"""

pytestmark = mark.e2e


@fixture
def script(tmp_path):
    """A script at the end of which a model is exported."""
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "model.py").write_text("def double(params, x):\n    return x * 2\n")
    return tmp_path


def test_a_script_in_a_terminal_shows_each_step(script):
    """On a terminal the steps of an export are seen as those of the command are."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "train.py"]
    environ = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=script, env=environ, stdout=-1, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
    os.close(ours)

    assert process.returncode == 0
    assert b"verifying: " in shown


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # at its end, on Linux
        return b""


def test_a_script_elsewhere_shows_nothing_but_what_it_prints(script):
    """Into a file or a pipe goes only the report, where it is printed: the command's own."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran, exported = (
        subprocess.run(
            [sys.executable, *words], cwd=script, env=environ, capture_output=True, text=True
        )
        for words in (
            ["train.py"],
            [
                *("-m", "export", "model.py:double", "--input", "x:float32[_,2]", "--buckets", "1"),
                *("--platforms", "cpu", "--out", "b", "--overwrite"),
            ],
        )
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == exported.stdout
    assert ran.stdout.splitlines()[-1] == "bundle   b; next: python -m server --bundle b"
