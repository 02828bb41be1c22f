"""A real server whose log is never read, or that has no streams to write to: it serves and ends all the same."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from pytest import mark

from tests.serving import ROOT, TIMEOUT_S, free_port, post

pytestmark = mark.e2e


def until_healthy(process, port):
    """Wait until a server is ready that cannot log it."""
    while True:
        assert process.poll() is None
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=TIMEOUT_S) as answer,
        ):
            return answer.status


def command(bundle, port, *arguments):
    """Write the command of a server."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--grpc-port", "-1"]
    options += ["--drain-delay-s", "0", "--bundle", str(bundle), *arguments]
    return [sys.executable, "-m", "server", *options]


def full_pipe():
    """Make a pipe that is full; return both ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * (1 << 16))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    return reader, writer


@mark.parametrize(("form", "processes"), [("text", 1), ("json", 2)])
def test_an_unread_log_holds_nothing_up(wide_bundle, form, processes):
    """With stdout and stderr full from the start a server becomes ready, answers, counts the lines it drops, and ends."""
    port = free_port()
    reader, writer = full_pipe()
    arguments = ["--log-format", form, "--processes", str(processes)]
    with subprocess.Popen(
        command(wide_bundle, port, *arguments), cwd=ROOT, stdout=writer, stderr=writer
    ) as process:
        try:
            ready = until_healthy(process, port)
            answer = post(f"http://127.0.0.1:{port}/predict", b'{"instances": [[1, 2]]}')
            process.send_signal(signal.SIGTERM)
            status = process.wait(TIMEOUT_S)
        finally:
            process.kill()
            os.close(reader)
            os.close(writer)

    assert (ready, answer, status) == (200, (200, {"predictions": [[8, 9]]}), 0)


@mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_not_missed(wide_bundle, closed):
    """Without stdin, stdout or stderr a server serves, ends well, and writes nothing into its sockets."""
    port = free_port()
    script = f'exec "$@" {closed}'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *command(wide_bundle, port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            ready = until_healthy(process, port)
            answer = post(f"http://127.0.0.1:{port}/predict", b'{"instances": [[1, 2]]}')
            streams = {str(Path(f"/proc/{process.pid}/fd/{fd}").readlink()) for fd in (0, 1, 2)}
            process.send_signal(signal.SIGTERM)
            status = process.wait(TIMEOUT_S)
        finally:
            process.kill()

    assert (ready, answer, status) == (200, (200, {"predictions": [[8, 9]]}), 0)
    assert not any(stream.startswith("socket:") for stream in streams)


@mark.parametrize("form", ["text", "json"])
def test_the_last_words_are_written(tmp_path, form):
    """The reason why a server ends is written before the process exits, though a thread writes the log."""
    ended = subprocess.run(
        command(tmp_path / "none", free_port(), "--log-format", form),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )

    lines = ended.stdout.splitlines()
    said = ended.stderr if form == "text" else json.loads(lines[-1])["message"]
    assert ended.returncode == 3
    assert f"{tmp_path}/none: expected a directory, got nothing there" in said
    assert form == "text" or ended.stderr == ""
