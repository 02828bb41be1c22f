"""Where an engine's tests get their bundles: from the project's own environment."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def export_bundles(out):
    """Export the bundles of `bundles` into a folder, by the Python that build.sh names."""
    command = [os.environ["HLOSERVE_PYTHON"], "-m", "tests.engines.bundles", str(out)]
    environ = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
