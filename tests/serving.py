"""The server as a process: started on free ports, queried over HTTP, ended by a signal."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 120


def free_port():
    """Find a port that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start(port, *arguments, command=("-m", "server"), options=None, **environ):
    """Start a server process.

    Args:
      port: of HTTP; there is no gRPC unless the environment names a port for it.
      *arguments: of the command line.
      command: what Python runs.
      options: of the process; its `env` comes before `environ`.
      **environ: variables.
    """
    options = {"cwd": ROOT, "env": os.environ} | (options or {})
    options["env"] = {
        **options["env"],
        "AIP_HTTP_PORT": str(port),
        "HLOSERVE_GRPC_PORT": "-1",
        "HLOSERVE_DRAIN_DELAY_S": "0",
        # Most tests look at the state of one process.
        "HLOSERVE_PROCESSES": "1",
        **_pinned(arguments),
        **environ,
    }
    return subprocess.Popen(
        [sys.executable, *command, "--host", "127.0.0.1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _pinned(arguments):
    """Require the digest of the bundle that is there: such a bundle is opened at once."""
    if "--bundle" in arguments:
        manifest = Path(arguments[arguments.index("--bundle") + 1]) / "manifest.json"
        if manifest.is_file():
            digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
            return {"HLOSERVE_REQUIRE_DIGEST": f"sha256:{digest}"}
    return {}


def ready_line(process):
    """Read the log until the server reports that it is ready."""
    for line in process.stdout:
        if "ready: " in line:
            return line
    raise AssertionError(process.stderr.read())


@dataclasses.dataclass
class Served:
    """A server that is ready.

    Attributes:
      process: runs it.
      port: of HTTP.
      grpc_port: of gRPC.
      log: what it wrote after it was ready, once it has ended.
    """

    process: subprocess.Popen
    port: int
    grpc_port: int
    log: str = ""

    @property
    def url(self):
        """Return its address."""
        return f"http://127.0.0.1:{self.port}"

    def post(self, value, path="/predict"):
        """Post a value as JSON; return the status and the response."""
        return post(f"{self.url}{path}", json.dumps(value).encode())

    def get(self, path):
        """Get a text."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=TIMEOUT_S) as answer:  # noqa: S310
            return answer.read().decode()

    def counts(self):
        """Return every sample of the metrics, by its name and labels as they are written."""
        lines = self.get("/metrics").splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def end(self, *signals):
        """Send signals; return the exit status and what it wrote to stderr."""
        for number in signals:
            self.process.send_signal(number)
        self.log, errors = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, errors


@contextlib.contextmanager
def started(*arguments, **more):
    """Run a server that is ready; the caller ends it.

    Args:
      *arguments: of the command line.
      **more: of `start`.
    """
    http, grpc = free_port(), free_port()
    with start(http, *arguments, **{"HLOSERVE_GRPC_PORT": str(grpc), **more}) as process:
        try:
            ready_line(process)
            yield Served(process, http, grpc)
        finally:
            process.kill()


@contextlib.contextmanager
def serving(*arguments, **more):
    """Run a server until it is no longer needed; it has to exit with status 0, without errors."""
    with started(*arguments, **more) as served:
        yield served
        ended = served.end(signal.SIGTERM)
    assert ended == (0, "")


def post(url, body):
    """Post a body; return the status and the response."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
