"""The shutdown check: how a server under load ends at SIGTERM, as Vertex AI stops containers."""

import threading
import time

from server.doctor.container import PREDICT_ROUTE, Broken, ContainerProcess, Refused
from server.doctor.result import CheckResult, Times

_LOADERS = 8


class _Load:
    """Requests from several threads, until there are no answers."""

    def __init__(self, process: ContainerProcess, body: bytes, times: Times) -> None:
        self._process, self._body, self._times = process, body, times
        self._signalled = threading.Event()
        self._over = threading.Event()
        self.answered = self.lost = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(_LOADERS)]

    def _send(self) -> None:
        while not self._over.is_set():
            before = not self._signalled.is_set()
            try:
                ok = self._process.ask(PREDICT_ROUTE, self._body, self._times.predict).status == 200
            except Refused:
                return
            except Broken:
                ok = False
            with self._lock:
                self.answered += ok
                # Requests after the signal may be refused: Vertex sends none then.
                self.lost += before and not ok
            if not ok:
                return

    def _busy(self) -> bool:
        """Whether enough was answered, or no thread sends any more."""
        return self.answered >= 2 * _LOADERS or not any(t.is_alive() for t in self._threads)

    def begin(self) -> None:
        """Send, until enough is answered or there are no answers."""
        for thread in self._threads:
            thread.start()
        self._process.until(self._busy, self._times.predict)

    def end(self) -> float | None:
        """Signal, and wait for the end: the seconds that it took, None if it did not end."""
        begin = time.monotonic()
        self._signalled.set()
        self._process.terminate()
        ended = self._process.wait(self._times.grace) is not None
        seconds = time.monotonic() - begin
        self._over.set()
        for thread in self._threads if ended else ():
            thread.join()
        return seconds if ended else None


def terminated(process: ContainerProcess, body: bytes, times: Times) -> CheckResult:
    """Check that every request is answered at SIGTERM, and that the server ends.

    Args:
      process: is healthy.
      body: a request.
      times: how long to wait.
    """
    load = _Load(process, body, times)
    check = "SIGTERM under load"
    load.begin()
    if process.status is not None:
        vertex = "restarts it, and its requests fail meanwhile"
        return CheckResult(
            check, ok=False, observed=process.silent_for("ended before"), consequence=vertex
        )
    seconds = load.end()
    vertex = "drops them whenever it scales in, updates or moves the container"
    if seconds is None:
        seen = f"still running after {times.grace:.3g} s"
        vertex = "kills it, with whatever it was answering"
        return CheckResult(check, ok=False, observed=seen, consequence=vertex)
    seen = f"{load.answered} answered, {load.lost} lost; ended after {seconds:.1f} s with status {process.status}"
    return CheckResult(check, ok=not load.lost, observed=seen, consequence=vertex)
