"""The server as a process: started on a free port, asked over HTTP."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 120


def free_port():
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start(port, *arguments, **environ):
    """Start a server process."""
    return subprocess.Popen(
        [sys.executable, "-m", "server", "--host", "127.0.0.1", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "AIP_HTTP_PORT": str(port),
            "HLOSERVE_GRPC_PORT": "-1",
            "HLOSERVE_DRAIN_DELAY_S": "0",
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ready_line(process):
    """Read the log until the server says that it is ready."""
    for line in process.stdout:
        if " ready: " in line:
            return line
    raise AssertionError(process.stderr.read())


def post(url, body):
    """Post a body; give the status and the answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
