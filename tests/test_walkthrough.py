"""The notebook runs from top to bottom, and its outputs are those that were saved."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from pytest import mark

from tests.serving import ROOT

NOTEBOOK = ROOT / "docs" / "walkthrough.ipynb"


def shown(notebook):
    """Return what each cell shows, without progress on stderr; percentages are left open."""
    return [
        re.sub(r"\d+%", "…%", output.get("text") or output["data"]["text/plain"]).strip()
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") != "stderr"
    ]


@mark.e2e
def test_the_notebook_runs_as_it_shows(tmp_path):
    """Training, export, verification, server and response are as they were saved."""
    ran = Path(shutil.copy(NOTEBOOK, tmp_path))
    command = [Path(sys.executable).with_name("jupyter-execute"), "--inplace", ran]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)

    saved, notebook = (nbformat.read(path, as_version=4) for path in (NOTEBOOK, ran))
    assert shown(notebook) == shown(saved)
    [accuracy] = re.findall(r"(\d+)% of the held-out", ran.read_text())
    assert int(accuracy) >= 95
