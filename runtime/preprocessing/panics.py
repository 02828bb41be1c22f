"""What native code prints when it panics: the first time in a process, and not again.

A panic is caught and becomes the error of one row. Its message, with a backtrace where the environment
asks for one, is printed by the library itself, at each text that a caller chooses to send.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

_STDERR = 2


class PanicOutput:
    """The standard error of native code, closed after a panic for as long as calls take.

    May be used from any number of threads at once. The descriptor is the process's: what other
    code prints during these calls is lost as well, which is why it stays open until a panic.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._panicked = False
        self._calls = 0
        self._kept: int | None = None

    def close(self) -> None:
        """Let nothing through from the next call on: there was a panic."""
        self._panicked = True

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """Discard what is printed within the block, once there was a panic."""
        if not self._panicked:
            yield
            return
        self._begin()
        try:
            yield
        finally:
            self._end()

    def _begin(self) -> None:
        with self._lock:
            self._calls += 1
            if self._calls > 1:
                return
            # Without a descriptor to spare it is printed.
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    kept = os.dup(_STDERR)
                    os.dup2(nowhere, _STDERR)
                    self._kept = kept
                finally:
                    os.close(nowhere)

    def _end(self) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls or self._kept is None:
                return
            os.dup2(self._kept, _STDERR)
            os.close(self._kept)
            self._kept = None


# There is one standard error, whatever the number of models.
OUTPUT = PanicOutput()
