"""The load: wrk, which leaves more of two cores to the server than any client in Python.

It sends one request after the other on each connection, so throughput and latency are two
views of one thing. It is not pinned to a core: server and load share all of them, as they would
for anybody who tries this at home.
"""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")


class LoadError(Exception):
    """There is no load generator, or it failed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What came of sending requests for a while."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    refused: int  # answers with a status of 400 and more
    broken: int  # connections that failed, and requests without an answer in ten seconds

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def clean(self) -> bool:
        return self.requests > 0 and not self.refused and not self.broken


def find_wrk() -> str:
    """Find wrk.

    Raises:
      LoadError: says how to get it.
    """
    found = shutil.which("wrk")
    if found is None:
        raise LoadError("expected wrk on the PATH, found none; `apt-get install wrk` brings it")
    return found


def send(url: str, bodies: Path, connections: int, seconds: float) -> Load:
    """Send the file's bodies to a URL over so many connections at once.

    Raises:
      LoadError: wrk failed.
    """
    command = [find_wrk(), "--threads=1", f"--connections={connections}", f"--script={SCRIPT}"]
    command += ["--timeout=10s", f"--duration={max(1, round(seconds))}s", url, "--", str(bodies)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in ended.stdout.splitlines():
        if line.startswith("RESULT "):
            return Load(**json.loads(line.removeprefix("RESULT ")))
    raise LoadError(f"wrk said: {ended.stderr.strip() or ended.stdout.strip()}")
