"""The CPU cores that this process may use: its affinity and its container's limit (cgroup)."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def share(processes: int, cores: int) -> int:
    """Return the number of compute threads for each of several processes.

    The cores are divided: with as many threads in all processes together as there are cores, a
    server answered up to 1.6 times the requests that it did with twice as many.
    """
    return max(1, cores // processes)


def cores_here(cgroup: Path = _CGROUP) -> int:
    """Return the number of cores that this process may use, a container's limit rounded up.

    XLA counts the machine's. In a container that may use 2 of 16 cores, 16 threads would use up
    the time of a scheduling period at once, and then all wait for the next one.

    Args:
      cgroup: root of the cgroup file system, of version 2 or 1.
    """
    cores = len(os.sched_getaffinity(0))
    limit = _limit(cgroup)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def free_cores(cgroup: Path = _CGROUP) -> float:
    """Return the cores that this process may use, a container's limit as it is, perhaps no whole number."""
    cores = len(os.sched_getaffinity(0))
    limit = _limit(cgroup)
    return float(cores) if limit is None else min(float(cores), limit)


@contextlib.contextmanager
def limited_to(cores: int) -> Iterator[None]:
    """Have this process compute on so many of its cores within the context.

    The main thread, where it is not the caller, keeps all: it answers health checks.

    Programs then run about as long as with so many threads: a pool of more has to share the cores.
    """
    usable = os.sched_getaffinity(0)
    _confine(set(sorted(usable)[-cores:]))
    try:
        yield
    finally:
        _confine(usable)


def _confine(cores: set[int]) -> None:
    """Have all threads run on these cores alone; not the main one, unless it is the caller."""
    apart = threading.main_thread().native_id
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != apart or apart == threading.get_native_id():
            with contextlib.suppress(OSError):  # it has ended, or may not be moved
                os.sched_setaffinity(int(task.name), cores)


def _limit(cgroup: Path) -> float | None:
    """Return the CPU seconds that the container may use each second; None without a limit."""
    v2 = _words(cgroup / "cpu.max")
    v1 = [*_words(cgroup / "cpu/cpu.cfs_quota_us"), *_words(cgroup / "cpu/cpu.cfs_period_us")]
    quota, period = (v2 or v1 or ("max", "1"))[:2]
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
