"""One cell of a comparison: a process that prints the rows that it ran, and their seconds."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Measured(NamedTuple):
    """What a process took.

    Attributes:
      rate: rows a second, without the start.
      start: seconds.
    """

    rate: float
    start: float


def measured(*command, python=sys.executable, timeout=None):
    """Run a module that prints rows and seconds as JSON, and perhaps those of its start.

    Args:
      command: the module, and its arguments.
      python: of the environment that it runs in.
      timeout: in seconds.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        [str(python), "-m", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    whole = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    start = found.get("start", whole - found["seconds"])
    return Measured(found["rows"] / found["seconds"], start)
