"""The commands of the guide to SavedModels print what it shows."""

import os
import sys
from pathlib import Path

from pytest import mark

from tests import in_tensorflow
from tests.guide import alike, blocks, commands, make_tools, run_command
from tests.serving import ROOT

GUIDE = (ROOT / "docs" / "savedmodel.md").read_text()


@mark.e2e
def test_the_guide_goes_as_it_shows(tmp_path):
    """Its files run and its commands print what stands there, in their order."""
    tools = make_tools(tmp_path / "bin", "http://127.0.0.1:0")
    environ = {
        **os.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    printed, ran = "", 0
    for language, block in blocks(GUIDE):
        if language == "python":
            name = block.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block)
            status, printed = run_command(f"python {name}", tmp_path, environ)
            assert status == 0, name
        elif language == "console":
            for command, shown in commands(block):
                status, got = run_command(command, tmp_path, environ)
                assert status == 0, command
                assert alike(shown, got), f"$ {command}\n{got}"
                ran += 1
        elif language == "text":
            assert alike(block, printed), printed
    assert ran == 5


def test_the_table_knows_the_installed_tensorflow(tensorflow):
    """Its table row matches what that TensorFlow reports."""
    stablehlo, version = tensorflow(in_tensorflow.reads)

    assert f"| {version.rpartition('.')[0]} | {stablehlo} |" in GUIDE
