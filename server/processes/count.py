"""How many processes `--processes auto` means here: decided before the server starts.

A process of its own loads the bundle on one core, as one of several would, and measures it. What it
compiles and finds out is kept in `--cache-dir`, where there is one, and not done again by the server.
"""

import dataclasses
import json
import logging
import math
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.child_process import module_command
from runtime.program import set_cpu_threads
from server import cpu_limits
from server.config import ServerConfig
from server.startup import open_model

log = logging.getLogger(__name__)

# What a request costs beside its program: reading, queueing and writing it.
REQUEST_S = 150e-6
# Times the requests below which more processes are not worth their memory.
MIN_GAIN = 1.2
# Of the memory that is free, what copies of the model may take; requests need the rest.
_SHARE = 0.8
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What one process with one core takes.

    Attributes:
      run_s: time of the smallest program, in seconds.
      memory_bytes: the most that the process occupied.
      cpu: whether the programs run on CPUs.
    """

    run_s: float
    memory_bytes: int
    cpu: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """A number of processes.

    Attributes:
      processes: the number.
      reason: for it, for the log.
    """

    processes: int
    reason: str


def choose(measured: Measured, cores: float, free_bytes: int | None) -> Choice:
    """Return how many processes answer the most requests, if they answer many more than one does.

    The interpreter's work on requests is all that several processes do at the same time and one does
    not: its programs have all cores already. So several gain where requests take longer than programs.

    Args:
      measured: what one takes.
      cores: that may be used; with a limit, perhaps no whole number.
      free_bytes: of memory; None if unknown.
    """
    if not measured.cpu:
        return Choice(1, "one process has a device's memory")
    whole = max(1, math.floor(cores))
    most = whole
    if free_bytes is not None:
        most = max(1, min(whole, int(_SHARE * free_bytes / max(1, measured.memory_bytes))))
    if whole == 1:
        return Choice(1, f"{cores:.3g} cores may be used")
    run_s = measured.run_s
    gain = most * (REQUEST_S + run_s / whole) / (REQUEST_S + run_s * most / whole)
    costs = f"a program takes {run_s * 1e6:.0f} µs and a request {REQUEST_S * 1e6:.0f} µs beside it"
    if most == 1:
        needed = f"{2 * measured.memory_bytes / 1e9:.3g} GB"
        return Choice(1, f"two processes need {needed}, more than {_SHARE:.0%} of what is free")
    if gain < MIN_GAIN:
        return Choice(1, f"{most} processes would answer {gain:.2f} times the requests: {costs}")
    return Choice(most, f"they answer up to {gain:.2f} times the requests of one: {costs}")


def decide(config: ServerConfig) -> ServerConfig:
    """Return a configuration with the number of processes that is best here, which is logged."""
    one = dataclasses.replace(config, processes=1)
    cores = cpu_limits.free_cores()
    if config.devices:
        choice = Choice(1, "one process has all of --devices")
    elif cores < 2:
        choice = Choice(1, f"{cores:.3g} cores may be used")
    else:
        measured = _measure(one)
        choice = (
            Choice(1, "the bundle could not be measured")
            if measured is None
            else choose(measured, cores, free_memory())
        )
    log.info("processes: %d, since %s", choice.processes, choice.reason)
    return dataclasses.replace(config, processes=choice.processes)


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


def _measure(config: ServerConfig) -> Measured | None:
    """Return what a process takes; None if the bundle cannot be loaded, as the server will say."""
    command = [*module_command("server.processes.count"), json.dumps(dataclasses.asdict(config))]
    ended = subprocess.run(  # noqa: S603 (our own command)
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return Measured(**json.loads(ended.stdout)) if ended.returncode == 0 else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def main(argv: Sequence[str]) -> None:
    """Load the bundle of a configuration on one core, and print what that took as JSON."""
    set_cpu_threads(1)
    opened, _ = open_model(ServerConfig(**json.loads(argv[0])))
    model = opened.model
    run_s = min(group.planner.cost(1) for group in model.groups.values())
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(dataclasses.asdict(Measured(run_s, memory, model.platform == "cpu"))))


if __name__ == "__main__":
    main(sys.argv[1:])
