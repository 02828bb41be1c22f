"""Log lines on stdout: for people, or as JSON for Cloud Logging and its like.

On stdout, since what a container writes to stderr is taken for errors whatever it says. Nobody who
logs waits for whoever reads them: a thread writes, see `log_writer`.
"""

import atexit
import datetime as dt
import functools
import io
import json
import logging
import os
import sys
import threading
import time
from typing import NoReturn, override

from runtime import scratch
from runtime.errors import printable
from server.log_writer import LineWriter, note

# https://cloud.google.com/logging/docs/structured-logging
_SEVERITIES = {"WARN": "WARNING", "FATAL": "CRITICAL"}
# Of warnings and worse from one line of code. Clients can provoke some, as often as they like.
REPEATS = 100
REPEATS_S = 10.0
# The longest that the end of the process waits for its last lines to be written.
FLUSH_S = 1.0


class TextFormatter(logging.Formatter):
    """A line for a person; control characters in a message are spelt out."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in record.message
        )
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """A JSON object on one line, with the keys that Cloud Logging knows.

    Args:
      project: of the traces that requests belong to; Cloud Logging links to them by it.
    """

    def __init__(self, project: str = "") -> None:
        super().__init__()
        self._traces = f"projects/{project}/traces/" if project else ""

    @override
    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        entry = {
            "severity": _SEVERITIES.get(record.levelname, record.levelname),
            "time": moment.isoformat(),
            "message": message,
            "logger": record.name,
        }
        trace = getattr(record, "trace", None)
        if trace is not None:
            entry["logging.googleapis.com/trace"] = self._traces + trace
        return json.dumps(entry)


class Handler(logging.Handler):
    """Hands lines to a writer; of the same warning only so many in a while.

    Args:
      writer: writes them.
      repeats: warnings and worse from one line of code, in REPEATS_S; more are dropped.
    """

    def __init__(self, writer: LineWriter, repeats: int = REPEATS) -> None:
        super().__init__()
        self._writer = writer
        self._repeats = repeats
        # The beginning of the present while, and how many there were in it, by line of code.
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and self._is_repeated(record):
            self._writer.drop()
            return
        try:
            self._writer.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 (as every handler does)
            self.handleError(record)

    def _is_repeated(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), time.monotonic()
        since, count = self._seen.get(place, (now, 0))
        if now - since > REPEATS_S:
            since, count = now, 0
        self._seen[place] = since, count + 1
        return count >= self._repeats

    def told(self, count: int) -> str:
        """Return the line about lines that were dropped."""
        record = logging.LogRecord("server", logging.WARNING, "", 0, note(count), None, None)
        return f"{self.format(record)}\n"

    @override
    def flush(self) -> None:
        self._writer.flush(FLUSH_S)


class Stream(io.TextIOBase):
    """What takes the place of `sys.stdout` or `sys.stderr`, for whatever is written past the log.

    Args:
      writer: writes it.
      fd: that it writes to.
    """

    def __init__(self, writer: LineWriter, fd: int) -> None:
        self._writer = writer
        self._fd = fd

    @override
    def write(self, text: str, /) -> int:
        self._writer.write(text)
        return len(text)

    @override
    def fileno(self) -> int:
        return self._fd

    @override
    def isatty(self) -> bool:
        return os.isatty(self._fd)

    @override
    def writable(self) -> bool:
        return True


@functools.cache
def _writer(fd: int) -> LineWriter:
    """Return the one writer of stdout, or of stderr."""
    writer = LineWriter(fd)
    _WRITERS.append(writer)
    return writer


_WRITERS: list[LineWriter] = []


def lines_dropped() -> int:
    """Return how many lines this process has dropped."""
    return sum(writer.dropped for writer in _WRITERS)


def set_up(form: str, project: str = "") -> None:
    """Send all logs to stdout, as `text` or as `json`; see `JsonFormatter` for the project."""
    writer = _writer(1)
    handler = Handler(writer)
    handler.setFormatter(JsonFormatter(project) if form == "json" else TextFormatter())
    writer.told = handler.told
    logging.captureWarnings(capture=True)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("jax").setLevel(logging.WARNING)  # it lists every absent backend


def take_streams() -> None:
    """Have all that Python code of this process writes go the way of the log, tracebacks too."""
    sys.stdout, sys.stderr = (Stream(_writer(fd), fd) for fd in (1, 2))
    sys.excepthook = lambda _, error, __: _uncaught("the process", error)
    threading.excepthook = lambda given: _uncaught(
        f"thread {given.thread.name if given.thread else '?'}", given.exc_value
    )
    sys.unraisablehook = lambda given: _uncaught(repr(given.object), given.exc_value)
    atexit.register(_flush)


def _uncaught(where: str, error: BaseException | None) -> None:
    if not isinstance(error, SystemExit):
        logging.getLogger("server").critical("an error ended %s", where, exc_info=error)


def _flush() -> None:
    until = time.monotonic() + FLUSH_S
    for writer in _WRITERS:
        writer.flush(max(0.0, until - time.monotonic()))


def end(form: str, error: Exception) -> None:
    """Say in one line why the process ends: to a person on stderr, else in the log's own form."""
    if form == "json":
        logging.getLogger("server").critical("%s", error)
    else:
        print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)


def leave(status: int) -> NoReturn:
    """End the process now, with its last lines if they are taken in time, and without its directories.

    Threads that load, run or read may not end by themselves.
    """
    scratch.remove_all()
    _flush()
    os._exit(status)
