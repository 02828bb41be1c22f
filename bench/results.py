"""Measurements that are committed: figures as JSON in docs/results, and their chart beside them."""

import datetime as dt
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.charts import bars
from bench.machine import describe

FOLDER = Path(__file__).parents[1] / "docs" / "results"


def save(name: str, figures: Mapping[str, Any], draw: Callable[..., object] = bars) -> None:
    """Write figures, the machine before them, and draw their chart.

    Args:
      name: what was measured, such as `serving`; the day and the version of Python follow it.
      figures: JSON values.
      draw: draws what was written: called with it, the chart's path and `day`.
    """
    FOLDER.mkdir(exist_ok=True)
    day = dt.datetime.now(dt.UTC).date().isoformat()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    path = FOLDER / f"{name}-{day}-python{version}.json"
    found = {"machine": describe(), **figures}
    path.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, path.with_suffix(".svg"), day=day)
    print(f"\nwrote {path} and its chart")
