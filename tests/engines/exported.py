"""What the tests of both engines have: bundles of the project's own environment, and what docs/batch.md shows."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def export_bundles(out):
    """Export the bundles of `bundles` into a folder, by the Python that build.sh names."""
    command = [os.environ["HLOSERVE_PYTHON"], "-m", "tests.engines.bundles", str(out)]
    environ = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def shown(word):
    """Return the block of Python in docs/batch.md that has a word in it."""
    page = (ROOT / "docs" / "batch.md").read_text()
    [block] = [
        b for b in re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if word in b
    ]
    return block
