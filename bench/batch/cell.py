"""One cell of a comparison: a process that prints the rows that it ran, and their seconds."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench import results

ROOT = Path(__file__).parents[2]


class Measured(NamedTuple):
    """What a process took.

    Attributes:
      rate: rows a second, without the start.
      start: seconds.
    """

    rate: float
    start: float


class Medians(NamedTuple):
    """What the rounds of a cell came to.

    Attributes:
      rate: rows a second.
      start: seconds.
      ratio: of the rate to that of the first cell in the same round: what else the machine does changes from round to round.
    """

    rate: float
    start: float
    ratio: float


def medians(seen):
    """Return the medians of each cell.

    Args:
      seen: cell to what was measured in each round, the cell that the others are compared with first.
    """
    first = next(iter(seen.values()))
    return {
        cell: Medians(
            statistics.median(one.rate for one in rounds),
            statistics.median(one.start for one in rounds),
            statistics.median(one.rate / of.rate for one, of in zip(rounds, first, strict=True)),
        )
        for cell, rounds in seen.items()
    }


def save_rates(name, title, found, **others):
    """Save medians, and their chart; see `bench.results`.

    Args:
      name: of the bench.
      title: of the chart.
      found: a comparison to the medians of its cells.
      others: JSON values to be saved beside them.
    """
    results.save(
        name,
        {
            "title": title,
            "unit": "rows a second",
            "panels": {of: {c: m.rate for c, m in cells.items()} for of, cells in found.items()},
            "measured": {
                of: {c: m._asdict() for c, m in cells.items()} for of, cells in found.items()
            },
            **others,
        },
    )


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
