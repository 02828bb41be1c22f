"""A server's processes: started once, stopped in their tracks while others are measured."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class ServerFailed(Exception):
    """A server ended, or never answered; the message has the end of its log."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Processes:
    """A command and all it starts, in a session of its own."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        self._log = log
        with log.open("wb") as out:
            self._first = subprocess.Popen(
                command,
                env={**os.environ, **env},
                cwd=cwd,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._first.pid

    def ended(self) -> bool:
        """Whether the command ended well.

        Raises:
          ServerFailed: it failed.
        """
        if self._first.poll() == 0:
            return True
        self.check()
        return False

    def check(self) -> None:
        """Raise ServerFailed if it has ended."""
        if self._first.poll() is not None:
            raise ServerFailed(f"exit status {self._first.returncode}:\n{self.log()}")

    def log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])

    def pause(self) -> None:
        """Stop them, so that polling and housekeeping cost the next one nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End them: politely, and after five seconds not."""
        self.resume()
        with contextlib.suppress(ProcessLookupError):
            self._first.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._first.wait(5)
        self._signal(signal.SIGKILL)
        self._first.wait()

    def cpu_seconds(self) -> float:
        """Return the processor time that they have used so far."""
        return sum(ticks for _, ticks in self._members()) / TICKS

    def _signal(self, number: signal.Signals) -> None:
        for pid, _ in self._members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _members(self) -> list[tuple[int, int]]:
        """List pid and processor ticks of every process of the session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name, in parentheses, can have blanks; what follows it cannot.
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._first.pid:
                    found.append((int(stat.parent.name), int(fields[11]) + int(fields[12])))
        return found


def wait_until(ready, processes: Processes, seconds: float) -> None:
    """Ask until the answer is yes.

    Raises:
      ServerFailed: it ended before, or took longer.
    """
    end = time.monotonic() + seconds
    while not ready():
        processes.check()
        if time.monotonic() > end:
            raise ServerFailed(f"not ready after {seconds:.0f} s:\n{processes.log()}")
        time.sleep(0.2)
