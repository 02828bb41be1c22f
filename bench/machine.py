"""What a figure was measured on; printed by every bench, since a figure means nothing without."""

import os
import platform
from importlib import metadata
from pathlib import Path


def cpu() -> str:
    """Name the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe() -> dict[str, str]:
    """Return machine and versions."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {
        "cpu": f"{cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
    }


def heading() -> str:
    """Write machine and versions on a line."""
    return ", ".join(f"{k} {v}" for k, v in describe().items())
