"""A server to soak, and what it holds."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.serving.process import ServerFailed, free_port

ROOT = Path(__file__).resolve().parents[2]
READY_S = 300.0
# For how long what clients left behind may take to go.
SETTLE_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What a process holds; the first two in MiB."""

    rss: float
    anonymous: float
    files: float
    threads: float
    arrays: float


# How much more there may be after a soak than before it. The allocator keeps some of what it
# got back, and pools of threads (8 for Flask, 6 of the loop's) fill up late; of the others
# each one is counted.
SLACK = Figures(rss=16.0, anonymous=16.0, files=0.0, threads=8.0, arrays=0.0)
LABELS = Figures(
    rss="resident MiB",
    anonymous="anonymous MiB",
    files="file descriptors",
    threads="threads",
    arrays="arrays on the device",
)
NAMES = tuple(field.name for field in dataclasses.fields(Figures))


class Server:
    """A server process.

    Args:
      bundle: to serve.
      leak: bytes that it keeps of every batch, on purpose; none if 0.
      log: where it writes.
    """

    def __init__(self, bundle: Path, log: Path, leak: int) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        self._log = log
        options = ["--host", "127.0.0.1", "--port", str(self.port)]
        options += ["--grpc-port", str(self.grpc_port), "--drain-delay-s", "0", "--processes", "1"]
        options += ["--max-body-bytes", str(1 << 20), "--bundle", str(bundle)]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.soak.served", *options],
                env={**os.environ, "SOAK_LEAK_BYTES": str(leak)},
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
          ServerFailed: it ended before, or took longer.
        """
        end = time.monotonic() + READY_S
        while "ready: http" not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > end:
                raise ServerFailed(f"the server is not ready:\n{self.log()}")
            time.sleep(0.1)

    def log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def counts(self) -> dict[str, float]:
        """Return the samples of its metrics."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def figures(self) -> Figures:
        """Look at what it holds now, garbage apart."""
        self._process.send_signal(signal.SIGUSR1)
        self.counts()  # it has heard of the signal by the time that it answers
        arrays = self.counts()["hloserve_live_arrays"]
        folder = Path(f"/proc/{self._process.pid}")
        status = _kilobytes(folder / "status")
        return Figures(
            rss=status["VmRSS"] / 1024,
            anonymous=_kilobytes(folder / "smaps_rollup")["Anonymous"] / 1024,
            files=len(list((folder / "fd").iterdir())),
            threads=status["Threads"],
            arrays=arrays,
        )

    def settled(self, wanted: Figures | None = None) -> Figures:
        """Look until what clients left is gone: as little as wanted, or as little as it gets."""
        end, last = time.monotonic() + SETTLE_S, None
        while True:
            now = self.figures()
            if wanted is not None and not beyond(wanted, now):
                return now
            if time.monotonic() > end or (wanted is None and now == last):
                return now
            last = now
            time.sleep(0.5)

    def stop(self) -> int:
        """End it; returns the exit status, which is not 0 where it had to be killed."""
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        self._process.kill()
        return self._process.wait()


def beyond(before: Figures, after: Figures) -> list[str]:
    """Name the figures that grew beyond their slack."""
    return [
        name
        for name in NAMES
        if getattr(after, name) > getattr(before, name) + getattr(SLACK, name)
    ]


def _kilobytes(path: Path) -> dict[str, float]:
    """Read the lines of a file in /proc that are a name and a number."""
    found = re.findall(r"^(\w+):\s+(\d+)", path.read_text(), re.MULTILINE)
    return {name: float(number) for name, number in found}


@contextlib.contextmanager
def running(bundle: Path, leak: int) -> Iterator[Server]:
    """Run a server; it is killed at the end if it was not stopped."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(bundle, Path(folder) / "log", leak)
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()
