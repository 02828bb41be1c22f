"""A non-blocking log writer: a separate thread writes lines to a file descriptor."""

import os
import select
import threading
import time
from collections.abc import Callable

# Bytes that may wait to be written; a pipe buffers 64 KiB more. Many times what a start logs.
PENDING_BYTES = 1 << 20
# How soon dropped lines are reported, if nothing else is written.
_NOTE_S = 1.0


def note(count: int) -> str:
    """Return the message that reports dropped lines."""
    return f"dropped {count} log lines"


class LineWriter:
    """Writes lines to a descriptor; drops and counts lines that its reader is too slow for.

    `write` may be called on any thread, and after a fork; it takes a lock that it never has
    during a system call. The thread starts with the first line and does not outlive the process.

    Args:
      fd: open for writing, blocking or not. If it is closed, broken or full, lines are dropped.
      pending_bytes: bytes that may wait; a longer line is accepted if no other waits.

    Attributes:
      dropped: number of lines that were dropped.
      dropped_line: returns the line that reports how many were dropped since the last report.
    """

    def __init__(self, fd: int, pending_bytes: int = PENDING_BYTES) -> None:
        self._fd = fd
        self._pending_bytes = pending_bytes
        self.dropped = 0
        self.dropped_line: Callable[[int], str] = lambda count: f"{note(count)}\n"
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Start empty: a forked process has none of the threads, and its parent writes the lines."""
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._size = 0
        self._unreported = 0
        self._busy = False
        self._broken = False
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Queue text to be written, or drop it; return at once."""
        size = len(text)
        with self._changed:
            if self._lines and self._size + size > self._pending_bytes:
                self._drop(text.count("\n"))
                return
            self._lines.append(text)
            self._size += size
            self._wake()

    def drop(self, lines: int = 1) -> None:
        """Count lines as dropped."""
        with self._changed:
            self._drop(lines)
            self._wake()

    def flush(self, within_s: float) -> bool:
        """Wait until everything is written, `within_s` seconds at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._busy, within_s)

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, or there are no more threads
                self._drop(sum(line.count("\n") for line in self._lines))
                self._lines, self._size = [], 0
                return
            self._thread = thread
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            lines, dropped = self._take()
            text = "".join(lines)
            written = _write(self._fd, text.encode(errors="backslashreplace"))
            reported = bool(dropped and written) and _write(
                self._fd, self.dropped_line(dropped).encode()
            )
            with self._changed:
                self._busy = False
                self._broken = not written
                self._unreported -= dropped if reported else 0
                if not written:
                    self._drop(text.count("\n"))
                self._changed.notify_all()

    def _take(self) -> tuple[list[str], int]:
        """Wait for lines, or up to `_NOTE_S` if some were dropped; return lines and dropped count."""
        with self._changed:
            while not self._lines:
                waits = self._unreported and not self._broken
                since = time.monotonic()
                self._changed.wait(_NOTE_S if waits else None)
                if waits and not self._lines and time.monotonic() - since >= _NOTE_S:
                    break
            lines, self._lines, self._size = self._lines, [], 0
            self._busy = True
            return lines, self._unreported


def _write(fd: int, data: bytes) -> bool:
    """Write all of the data, however long that takes; return whether that was possible."""
    remaining = memoryview(data)
    while remaining:
        try:
            remaining = remaining[os.write(fd, remaining) :]
        except BlockingIOError:  # another process that shares the descriptor made it non-blocking
            select.select([], [fd], [])
        except (OSError, ValueError):
            return False
    return True
