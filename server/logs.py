"""Logging to stdout: as text, or as JSON for Cloud Logging and other collectors.

On stdout, since collectors take everything on a container's stderr for errors. Logging never blocks
on a slow reader: a separate thread writes, see `log_writer`.
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
from runtime.invocation import error_line
from server.log_writer import LineWriter, note

# https://cloud.google.com/logging/docs/structured-logging
_SEVERITIES = {"WARN": "WARNING", "FATAL": "CRITICAL"}
# Rate limit of warnings and worse from one line of code: clients can provoke some without limit.
REPEATS = 100
REPEATS_S = 10.0
# Longest wait at exit for the last lines to be written.
FLUSH_S = 1.0


class TextFormatter(logging.Formatter):
    """A line of text; control characters in a message are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in record.message
        )
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """A JSON object on one line, with the keys of Cloud Logging.

    Args:
      project: Google Cloud project of the requests' traces; Cloud Logging links to them by it.
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
    """Passes lines to a writer, and limits the rate of repeated warnings.

    Args:
      writer: writes the lines.
      repeats: warnings and worse from one line of code in REPEATS_S; further ones are dropped.
    """

    def __init__(self, writer: LineWriter, repeats: int = REPEATS) -> None:
        super().__init__()
        self._writer = writer
        self._repeats = repeats
        # Line of code to the start of its present interval, and the number of records in it.
        self._intervals: dict[tuple[str, int], tuple[float, int]] = {}

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
        line, now = (record.pathname, record.lineno), time.monotonic()
        since, count = self._intervals.get(line, (now, 0))
        if now - since > REPEATS_S:
            since, count = now, 0
        self._intervals[line] = since, count + 1
        return count >= self._repeats

    def dropped_line(self, count: int) -> str:
        """Return the line that reports dropped lines."""
        record = logging.LogRecord("server", logging.WARNING, "", 0, note(count), None, None)
        return f"{self.format(record)}\n"

    @override
    def flush(self) -> None:
        self._writer.flush(FLUSH_S)


class Stream(io.TextIOBase):
    """Replaces `sys.stdout` or `sys.stderr`, for output that bypasses the log.

    Args:
      writer: writes the output.
      fd: the writer's descriptor.
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
    """Return the process's one writer of a descriptor."""
    writer = LineWriter(fd)
    _WRITERS.append(writer)
    return writer


_WRITERS: list[LineWriter] = []


def lines_dropped() -> int:
    """Return the number of lines that this process has dropped."""
    return sum(writer.dropped for writer in _WRITERS)


def set_up(form: str, project: str = "") -> None:
    """Send all logs to stdout, as `text` or `json`; see `JsonFormatter` for `project`."""
    writer = _writer(1)
    handler = Handler(writer)
    handler.setFormatter(JsonFormatter(project) if form == "json" else TextFormatter())
    writer.dropped_line = handler.dropped_line
    logging.captureWarnings(capture=True)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("jax").setLevel(logging.WARNING)  # it lists every absent backend


def take_streams() -> None:
    """Redirect stdout and stderr of Python code, and uncaught exceptions, to the log's writers."""
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


def report_fatal(form: str, error: Exception) -> None:
    """Report in one line why the process ends: as text on stderr, as JSON in the log."""
    if form == "json":
        logging.getLogger("server").critical("%s", error)
    else:
        print(error_line(printable(str(error))), file=sys.stderr, flush=True)


def exit_process(status: int) -> NoReturn:
    """Remove temporary directories, write the last log lines if they are read in time, and exit.

    It does not wait for threads: those that load, run or read may not end by themselves.
    """
    scratch.remove_all()
    _flush()
    os._exit(status)
