"""Log lines on stdout: for people, or as JSON for Cloud Logging and its like.

On stdout, since what a container writes to stderr is taken for errors whatever it says.
"""

import datetime as dt
import json
import logging
import sys
from typing import override

from runtime.errors import printable

# https://cloud.google.com/logging/docs/structured-logging
_SEVERITIES = {"WARN": "WARNING", "FATAL": "CRITICAL"}


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


def set_up(form: str, project: str = "") -> None:
    """Send all logs to stdout, as `text` or as `json`; see `JsonFormatter` for the project."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(project) if form == "json" else TextFormatter())
    logging.captureWarnings(capture=True)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("jax").setLevel(logging.WARNING)  # it lists every absent backend


def end(form: str, error: Exception) -> None:
    """Say in one line why the process ends: to a person on stderr, else in the log's own form."""
    if form == "json":
        logging.getLogger("server").critical("%s", error)
    else:
        print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
