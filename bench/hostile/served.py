"""A server that gets bad texts: a process, what it prints, and how it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.serving.process import ServerFailed, free_port

ROOT = Path(__file__).resolve().parents[2]
_READY_S = 300.0


class Server:
    """A running server.

    Args:
      bundle: to serve.
      log: where it writes.
    """

    def __init__(self, bundle: Path, log: Path) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        self._log = log
        ports = ["--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "server", "--host", "127.0.0.1", *ports),
                    *("--drain-delay-s", "0", "--processes", "1", "--bundle", str(bundle)),
                ],
                env={**os.environ, "RUST_BACKTRACE": "1"},
                cwd=ROOT,
                stdout=out,
                stderr=out,
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
          ServerFailed: it ended before, or took longer.
        """
        end = time.monotonic() + _READY_S
        while "ready: http" not in self.log():
            if self._process.poll() is not None or time.monotonic() > end:
                raise ServerFailed(f"the server is not ready:\n{self.log()[-2000:]}")
            time.sleep(0.1)

    def log(self) -> str:
        """Return what it has written."""
        return self._log.read_text(errors="replace")

    def rss_mib(self) -> float:
        """Return its resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> int:
        """End it; return the exit status, which is not 0 where it had to be killed."""
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        self._process.kill()
        return self._process.wait()


@contextlib.contextmanager
def running(bundle: Path) -> Iterator[Server]:
    """Run a server; it is killed at the end if it was not stopped."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(bundle, Path(folder) / "log")
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()
