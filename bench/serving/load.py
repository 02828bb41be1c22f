"""The load: wrk, and h2load for gRPC, which leave more of two cores to the server than any
client in Python.

It sends one request after the other on each connection, so throughput and latency are two
views of one thing. It is not pinned to a core: server and load share all of them, as they would
to run this elsewhere.
"""

import dataclasses
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")


class LoadError(Exception):
    """There is no load generator, or it failed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """The result of sending requests for a while."""

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


def find(name: str) -> str:
    """Find a load generator.

    Raises:
      LoadError: says how to get it.
    """
    found = shutil.which(name)
    if found is None:
        package = {"wrk": "wrk", "h2load": "nghttp2-client"}[name]
        raise LoadError(f"expected {name} on the PATH, found none; `apt-get install {package}`")
    return found


def send(url: str, bodies: Path, connections: int, seconds: float) -> Load:
    """Send the file's bodies to a URL over so many connections at once.

    Raises:
      LoadError: wrk failed.
    """
    command = [find("wrk"), "--threads=1", f"--connections={connections}", f"--script={SCRIPT}"]
    command += ["--timeout=10s", f"--duration={max(1, round(seconds))}s", url, "--", str(bodies)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in ended.stdout.splitlines():
        if line.startswith("RESULT "):
            return Load(**json.loads(line.removeprefix("RESULT ")))
    raise LoadError(f"wrk said: {ended.stderr.strip() or ended.stdout.strip()}")


def call(
    url: str, message: Path, connections: int, seconds: float, each: int, at_once: int = 1
) -> Load:
    """Send the file as the body of a gRPC call over so many connections at once.

    Args:
      url: of the method.
      message: one request, or a stream of them.
      connections: how many.
      seconds: how long.
      each: requests of a call; they are what is counted.
      at_once: calls that a connection has under way at a time.

    Raises:
      LoadError: h2load failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [find("h2load"), "--threads=1", f"--clients={connections}", f"--log-file={log}"]
        command += [f"--max-concurrent-streams={at_once}", f"--duration={max(1, round(seconds))}"]
        command += ["--header=content-type: application/grpc", "--header=te: trailers"]
        ended = subprocess.run(
            [*command, f"--data={message}", url], capture_output=True, text=True, check=False
        )
        if ended.returncode or not log.exists():
            raise LoadError(f"h2load said: {ended.stderr.strip() or ended.stdout.strip()}")
        # When it began, its status, and how long it took, in microseconds.
        calls = [line.split() for line in log.read_text().splitlines()]
    good = sorted(int(took) for _, status, took in calls if status == "200")
    if not good:
        raise LoadError("h2load had no answer")
    return Load(
        requests=len(good) * each,
        seconds=float(max(1, round(seconds))),
        p50_us=good[len(good) // 2],
        p99_us=good[len(good) * 99 // 100],
        refused=len(calls) - len(good),
        broken=0,
    )
