"""The cores that programs may compute on, as the machine and its container give them."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def share(processes: int, cores: int) -> int:
    """Give the threads that each of several processes is to compute with.

    Each has its part of the cores: as many threads in all processes together as there are
    cores answered up to 1.6 times the requests that twice as many did.
    """
    return max(1, cores // processes)


def cores_here(cgroup: Path = _CGROUP) -> int:
    """Count the cores that this process may use, a container's limit rounded up.

    XLA counts those of the machine. Of a container that may use 2 of 16 its 16 threads would
    use up the time of a period at once, and then all wait for the next one.

    Args:
      cgroup: where the kernel has the container's limits, of version 2 or 1.
    """
    cores = len(os.sched_getaffinity(0))
    limit = _limit(cgroup)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def _limit(cgroup: Path) -> float | None:
    """Give the processor time that the container may use of each second; None without a limit."""
    of_2 = _words(cgroup / "cpu.max")
    of_1 = [*_words(cgroup / "cpu/cpu.cfs_quota_us"), *_words(cgroup / "cpu/cpu.cfs_period_us")]
    quota, period = (of_2 or of_1 or ("max", "1"))[:2]
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
