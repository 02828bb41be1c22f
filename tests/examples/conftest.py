"""The examples are run as their READMEs say: from the top of the repository."""

import subprocess
import sys
from pathlib import Path

from pytest import fixture

ROOT = Path(__file__).parents[2]


@fixture(scope="session")
def run():
    """Run a module as a process that has to succeed; return what it wrote."""

    def run_module(*arguments):
        command = [sys.executable, "-m", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done

    return run_module
