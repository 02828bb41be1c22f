"""Log lines: for people, and for Cloud Logging."""

import io
import json
import logging
import sys

from pytest import fixture, mark, param

from server.logs import JsonFormatter, TextFormatter, report_fatal
from server.protocols.response import exception_response
from server.request_id import request_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@fixture
def logged():
    """Format log records with a formatter; return the lines that a function logs."""

    def run(formatter, call):
        written = io.StringIO()
        handler = logging.StreamHandler(written)
        handler.setFormatter(formatter)
        root = logging.getLogger("server")
        root.addHandler(handler)
        try:
            call()
        finally:
            root.removeHandler(handler)
        return written.getvalue().splitlines()

    return run


def test_a_line_for_people_has_time_and_level(logged):
    """A line begins with the time of day and the level; control characters are spelt out."""
    lines = logged(TextFormatter(), lambda: logging.getLogger("server").warning("a\nb\x1b[31m"))

    assert [line.split(" ", 1)[1] for line in lines] == [r"WARNING a\nb\x1b[31m"]


@mark.parametrize(
    ("level", "severity"),
    [("warning", "WARNING"), ("error", "ERROR"), ("critical", "CRITICAL")],
)
def test_a_json_line_has_what_cloud_logging_knows(logged, level, severity):
    """A JSON line is one object with severity, time in UTC and message, whatever the message contains."""
    (line,) = logged(
        JsonFormatter(), lambda: getattr(logging.getLogger("server.x"), level)('a\n"b"')
    )

    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"severity": severity, "message": 'a\n"b"', "logger": "server.x"}


@mark.parametrize(
    ("headers", "project", "name", "trace"),
    [
        param({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, "", TRACE, TRACE, id="w3c"),
        param(
            {"x-cloud-trace-context": f"{TRACE}/74;o=1", "x-request-id": "mine"},
            "p",
            "mine",
            f"projects/p/traces/{TRACE}",
            id="google",
        ),
        param({"x-request-id": "mine"}, "p", "mine", None, id="none"),
        param({"traceparent": "x" * 10_000, "x-request-id": "mine"}, "", "mine", None, id="junk"),
        param(
            {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01", "x-request-id": "mine"},
            "",
            "mine",
            None,
            id="zeros",
        ),
    ],
)
def test_a_failed_request_is_logged_with_its_trace(logged, headers, project, name, trace):
    """
    The log of a request that fails inside names its trace, and has its id; the answer has
    the same id.
    """
    made = []
    error = RuntimeError("inside")
    (line,) = logged(
        JsonFormatter(project),
        lambda: made.append(exception_response(error, request_id(headers.get))),
    )

    entry = json.loads(line)
    assert entry.get("logging.googleapis.com/trace") == trace
    assert entry["severity"] == "ERROR"
    assert entry["message"].splitlines()[0] == f"request {name} failed"
    assert json.loads(made[0].body)["request_id"] == name


def test_junk_in_trace_headers_names_no_request():
    """Without an id of the caller's, a malformed trace header sets none."""
    assert request_id({"traceparent": "00-xyz"}.get) is None
    assert request_id({}.get) is None


def test_a_fatal_error_is_printed_to_a_terminals_stderr(capsys):
    """A fatal error is one line on stderr, and nothing on stdout."""
    report_fatal("text", ValueError("no bundle"))

    assert tuple(capsys.readouterr()) == ("", "error: no bundle\n")


def test_the_end_cannot_draw(capsys):
    """Text from a bundle in the message neither moves the cursor nor starts a new line."""
    report_fatal("text", ValueError("by jax \x1b[2J\nready"))

    assert capsys.readouterr().err == "error: by jax \\x1b[2J\\nready\n"


def test_the_end_is_a_line_of_the_log_where_that_is_json(logged, capsys):
    """Where logs are JSON, the fatal error is a log line, with severity critical."""
    (line,) = logged(JsonFormatter(), lambda: report_fatal("json", ValueError("no bundle")))

    assert json.loads(line)["severity"] == "CRITICAL"
    assert json.loads(line)["message"] == "no bundle"
    assert sys.stderr is not None
    assert "error: no bundle" not in capsys.readouterr().err
