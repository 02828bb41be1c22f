"""How many processes `--processes auto` means here: chosen by the first one as it starts.

It loads the bundle on all cores, and measures its programs there and on the part of the cores that each of
several would have. Where several answer more it becomes one of them, and the others are started; else it
goes on as it is. With `--cache-dir` the next start knows what was measured, and chooses before it loads.
"""

import dataclasses
import importlib.metadata
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from runtime.bundle import Bundle
from runtime.device import cpu_model
from runtime.executable_cache import ExecutableCache, seconds_of
from runtime.model import Model
from runtime.program import cpu_threads, may_change_cpu_threads
from runtime.records.golden_instances import golden_instances
from server import cpu_limits
from server.config import AUTO, ServerConfig
from server.limits import INLINE_S
from server.protocols import vertex
from server.startup import OtherThreads
from server.throughput import MIN_GAIN, process_gain

log = logging.getLogger(__name__)

# What a request costs beside its program and the parsing of its rows.
REQUEST_S = 80e-6
# Of the memory that is free, what copies of the model may take; requests need the rest.
_SHARE = 0.8
# More processes answer so many times the requests of fewer, or the fewer are enough.
_WORTH_MORE = 1.05
# The largest batch that is measured takes no longer, about; each program has so many turns of this time.
_LARGE_S = 0.25
_TURNS, _TURN_S, _MAX_RUNS = 3, 0.01, 50
_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")

# Number of threads to the seconds of a batch.
Runs = Mapping[int, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What one process takes.

    Attributes:
      parse_s: of a row in a request, in seconds.
      runs: rows of a batch to its runs; of the smallest, and of a large one.
      memory_bytes: that the process occupies.
    """

    parse_s: float
    runs: Mapping[int, Runs]
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `read` reads."""
        runs = {
            str(rows): {str(n): seconds for n, seconds in runs.items()}
            for rows, runs in self.runs.items()
        }
        return {"parse_s": self.parse_s, "runs": runs, "memory_bytes": self.memory_bytes}

    @classmethod
    def read(cls, record: Mapping[str, Any], threads: Sequence[int]) -> "Measured | None":
        """Return what `to_json` returned; None if it is anything else, or lacks a number of threads."""
        try:
            found = cls(
                _seconds(record["parse_s"]),
                {
                    int(rows): {n: _seconds(runs[str(n)]) for n in threads}
                    for rows, runs in record["runs"].items()
                },
                int(record["memory_bytes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return found if found.runs and min(found.runs) > 0 and found.memory_bytes > 0 else None


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A number of processes.

    Attributes:
      processes: the number.
      reason: for it, for the log.
    """

    processes: int
    reason: str


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads that a process may have: all cores, and 1, 2, 4, … of them."""
    return sorted({cores, *(2**n for n in range(cores.bit_length()) if 2**n < cores)})


def choose(measured: Measured, cores: int, free_bytes: int | None) -> Choice:
    """Return how many processes answer the most requests, if they answer more than one does.

    They have to, with rows that come alone and in large batches: which of these a server will have
    depends on its clients.

    Args:
      measured: what one takes, with each of `thread_counts`.
      cores: that may be used.
      free_bytes: of memory that further processes may take; None if unknown.
    """
    if cores == 1:
        return Choice(1, "one core may be used")
    fitting = cores
    if free_bytes is not None:
        fitting = 1 + int(_SHARE * max(0, free_bytes) / measured.memory_bytes)
    if fitting == 1:
        needed = f"{measured.memory_bytes / 1e9:.3g} GB"
        return Choice(1, f"a second one needs {needed}, more than {_SHARE:.0%} of what is free")
    best = threads = 1
    gain = 0.0
    for count in reversed(thread_counts(cores)[:-1]):
        processes = min(cores // count, fitting)
        found = min(_gains(measured, cores, count, processes))
        if processes > best and found > _WORTH_MORE * gain:
            best, threads, gain = processes, count, found
    about = f"{gain:.2f} times the requests of one: {_in_words(measured, cores, threads)}"
    if gain < MIN_GAIN:
        return Choice(1, f"{best} would answer up to {about}")
    return Choice(best, f"they answer up to {about}")


def _gains(measured: Measured, cores: int, threads: int, processes: int) -> list[float]:
    """Return what several processes gain, with batches of each measured size."""
    return [
        process_gain(
            REQUEST_S + measured.parse_s,
            runs[cores] / rows,
            # Never faster with fewer threads: where it was, others used the cores meanwhile.
            max(runs[threads], runs[cores]) / rows,
            processes,
            overlaps=runs[cores] > INLINE_S,
        )
        for rows, runs in measured.runs.items()
    ]


def _in_words(measured: Measured, cores: int, threads: int) -> str:
    handling_s = REQUEST_S + measured.parse_s
    batches = [
        f"a batch of {rows} takes {1e3 * runs[cores]:.3g} ms on {cores} cores and "
        f"{1e3 * runs[threads]:.3g} ms on {threads}"
        for rows, runs in measured.runs.items()
    ]
    return "; ".join([f"a request takes {1e3 * handling_s:.2g} ms beside its program", *batches])


def possible(config: ServerConfig) -> int:
    """Return the most processes that a configuration may come to here, before anything is loaded."""
    if config.processes != AUTO:
        return config.processes
    if config.devices or config.device.partition(":")[0] not in ("", "cpu"):
        return 1
    return max(1, math.floor(cpu_limits.free_cores()))


class FirstProcess:
    """Chooses the number of processes in the first of them; implements `Chooser`.

    Called on the thread that loads.

    Args:
      cores: that may be used.
      on_chosen: called with the number of processes if it is to have workers started.
    """

    def __init__(self, cores: int, on_chosen: Callable[[int], object]) -> None:
        self._cores = cores
        self._on_chosen = on_chosen
        self._processes = 1

    def recall(self, bundle: Bundle, cache: ExecutableCache | None) -> int | None:
        """Choose by what an earlier start measured; see `Chooser`."""
        if cache is None:
            return None
        measured = Measured.read(cache.record(self._key(bundle)), thread_counts(self._cores))
        if measured is None:
            return None
        free = free_memory()
        # This process is not loaded yet, and takes as much.
        return self._choose(measured, None if free is None else free - measured.memory_bytes)

    def measure(self, model: Model, cache: ExecutableCache | None) -> None:
        """Choose by the programs of a model; see `Chooser`."""
        if model.platform != "cpu":
            log.info("processes: 1, since one has the memory of a device")
            return
        measured = measure(model, self._cores)
        if cache is not None:
            cache.keep_record(self._key(model.bundle), measured.to_json())
        threads = self._choose(measured, free_memory())
        if threads != cpu_threads() and may_change_cpu_threads():
            raise OtherThreads(threads)

    def start_workers(self) -> None:
        """Have the other processes started, if there are to be some."""
        self._on_chosen(self._processes)

    def _choose(self, measured: Measured, free_bytes: int | None) -> int:
        choice = choose(measured, self._cores, free_bytes)
        log.info("processes: %d, since %s", choice.processes, choice.reason)
        self._processes = choice.processes
        # What the container may use at most, rounded up, is what one process computes with.
        cores = self._cores if choice.processes > 1 else cpu_limits.cores_here()
        return cpu_limits.share(choice.processes, cores)

    def _key(self, bundle: Bundle) -> dict[str, Any]:
        return {
            "processes of": bundle.digest,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "cpu": cpu_model(),
            "cores": self._cores,
            "threads": os.environ.get("NPROC", "") if not may_change_cpu_threads() else "",
        }


def measure(model: Model, cores: int) -> Measured:
    """Return what a model's programs take on all cores and on parts of them, in turns, and its memory.

    Args:
      model: on a CPU; its programs may run here for the first time.
      cores: that may be used.
    """
    sizes, group = next(iter(model.groups.items()))
    smallest = min(group.programs)

    def seconds(rows: int) -> float:
        begin = time.perf_counter()
        model.run(group.programs[rows], model.blank(rows, sizes))
        return time.perf_counter() - begin

    seconds(smallest)  # what the first run does only once is not counted
    row_s = seconds(smallest) / smallest
    large = max(rows for rows in group.programs if rows == smallest or rows * row_s <= _LARGE_S)
    runs = {}
    for rows in sorted({smallest, large}):
        seconds(rows)
        best = dict.fromkeys(thread_counts(cores), math.inf)
        for _ in range(_TURNS):
            for threads in best:
                with cpu_limits.limited_to(threads):
                    best[threads] = min(best[threads], _best(lambda: seconds(rows)))  # noqa: B023
        runs[rows] = best
    return Measured(_parse_seconds(model), runs, _resident_bytes())


def _best(seconds: Callable[[], float]) -> float:
    """Return the shortest of the runs that fit into a turn, at least one."""
    best, spent, count = math.inf, 0.0, 0
    while not count or (spent < _TURN_S and count < _MAX_RUNS):
        taken = seconds()
        best, spent, count = min(best, taken), spent + taken, count + 1
    return best


def _parse_seconds(model: Model) -> float:
    """Return how long it takes to parse a row of a request, by a golden's."""
    rows = golden_instances(model.bundle)[:1]
    if not rows:
        return 0.0
    body = orjson.dumps({"instances": rows}, option=orjson.OPT_SERIALIZE_NUMPY)

    def seconds() -> float:
        begin = time.perf_counter()
        vertex.read(body, None, model, max_rows=1)
        return time.perf_counter() - begin

    return _best(seconds)


def _resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", _read(_STATUS))
    return 1024 * int(found[1]) if found else 1


def _seconds(value: object) -> float:
    """Return a time that was kept.

    Raises:
      ValueError: it can be none.
    """
    found = seconds_of(value)
    if found is None:
        raise ValueError(value)
    return found


def free_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Return the bytes of memory that are free, for the machine and for this container; None if unknown.

    Args:
      meminfo: the kernel's file.
      cgroup: root of the cgroup file system, of version 2 or 1.
    """
    found = [
        1024 * int(line.split()[1])
        for line in _read(meminfo).splitlines()
        if line.startswith("MemAvailable:")
    ]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        texts = _read(cgroup / limit).strip(), _read(cgroup / used).strip()
        if all(text.isdecimal() for text in texts):
            found.append(max(0, int(texts[0]) - int(texts[1])))
    return min(found, default=None)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
