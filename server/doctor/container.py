"""The process that the doctor checks: a command started as Vertex AI starts a container."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple, Self

# Vertex's own routes, where a model names none.
HEALTH_ROUTE = "/v1/endpoints/1/deployedModels/2"
PREDICT_ROUTE = f"{HEALTH_ROUTE}:predict"

_POLL_S = 0.05
# How long a command has to end in order, and how much of what it writes is read.
_LEAVE_S = 10.0
_READ_BYTES = 1 << 16


class HttpAnswer(NamedTuple):
    """An answer: status, body, and after how many seconds."""

    status: int
    body: bytes
    seconds: float

    def predictions(self) -> list[Any] | None:
        """Return the predictions, None where the body has no list of them."""
        try:
            found = json.loads(self.body)["predictions"]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, list) else None

    def __str__(self) -> str:
        """Return the status and the beginning of the body as text."""
        return f"{self.status} {self.body[:100].decode(errors='replace').strip()}".strip()


class Refused(Exception):
    """The port does not accept connections."""


class Unstartable(Exception):
    """The command cannot be started; says why."""


class Broken(Exception):
    """The connection ended, or time was up, before the answer was whole."""


def vertex_environment(port: int, storage_uri: str) -> dict[str, str]:
    """Return the environment variables that Vertex sets in a container."""
    return {
        "AIP_ACCELERATOR_TYPE": "",
        "AIP_DEPLOYED_MODEL_ID": "2",
        "AIP_ENDPOINT_ID": "1",
        "AIP_FRAMEWORK": "CUSTOM_CONTAINER",
        "AIP_HEALTH_ROUTE": HEALTH_ROUTE,
        "AIP_HTTP_PORT": str(port),
        "AIP_MACHINE_TYPE": "n1-standard-2",
        "AIP_MODE": "PREDICTION",
        "AIP_MODE_VERSION": "1.0.0",
        "AIP_MODEL_NAME": "doctor",
        "AIP_PREDICT_ROUTE": PREDICT_ROUTE,
        "AIP_PROJECT_NUMBER": "0",
        "AIP_STORAGE_URI": storage_uri,
        "AIP_VERSION_NAME": "1",
    }


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


class ContainerProcess:
    """A server process; ends with the context, whatever it does.

    Args:
      command: starts it.
      environ: its environment, to which Vertex's variables are added.
      storage_uri: what AIP_STORAGE_URI says.

    Raises:
      Unstartable: there is no such command.
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], storage_uri: str
    ) -> None:
        self.port = free_port()
        # No pipes: what the command leaves running could hold them open.
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (likewise)
        self._terminated = False
        inherited = {k: v for k, v in environ.items() if not k.startswith("AIP_")}
        try:
            self._process = subprocess.Popen(  # noqa: S603 (what the user asked for)
                command,
                env={**inherited, **vertex_environment(self.port, storage_uri)},
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError as error:
            self._close()
            raise Unstartable(f"{command[0]}: {error.strerror}") from None
        self.began = time.monotonic()

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the command and all that it started.

        First in order: `docker run` and its like pass SIGTERM on to the container, but not SIGKILL.
        """
        try:
            if self.status is None and not self._terminated:
                self.terminate()
                self.wait(_LEAVE_S)
        finally:  # also at an interrupt
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._close()

    def _close(self) -> None:
        self._stdout.close()
        self._stderr.close()

    @property
    def status(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self._process.poll()

    def listens(self, host: str) -> bool:
        """Whether a connection is accepted."""
        try:
            socket.create_connection((host, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def ask(
        self, path: str, body: bytes | None = None, timeout_s: float = 60.0, host: str = "127.0.0.1"
    ) -> HttpAnswer:
        """Send a request on a connection of its own: a GET, or a POST of JSON.

        Raises:
          Refused: there was no connection to be had.
          Broken: there was one, but no whole answer.
        """
        begin = time.monotonic()
        connection = http.client.HTTPConnection(host, self.port, timeout=timeout_s)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise Refused(str(error)) from None
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            return HttpAnswer(answer.status, answer.read(), time.monotonic() - begin)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(str(error) or type(error).__name__) from None
        finally:
            connection.close()

    def terminate(self) -> None:
        """Send SIGTERM to the command, as to a container's first process."""
        self._terminated = True
        self._process.terminate()

    def wait(self, seconds: float) -> int | None:
        """Wait for the end; return the exit status, None if it still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so; returns when time is over or the command has ended."""
        end = time.monotonic() + seconds
        while not done():
            if self.status is not None or time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        return True

    def silent_for(self, otherwise: str) -> str:
        """Return how the command ended, or `otherwise` if it has not."""
        if self.status is None:
            return otherwise
        return f"ended with status {self.status}: {self.last_log_line() or 'without a word'}"

    @property
    def errors(self) -> list[str]:
        """Return the lines on stderr, up to a limit."""
        return _read(self._stderr, 0).splitlines()

    def last_log_line(self) -> str:
        """Return the last line on stderr, else of the log on stdout; "" if there is none."""
        for written in (self._stderr, self._stdout):
            size = os.fstat(written.fileno()).st_size
            if lines := _read(written, max(0, size - _READ_BYTES)).strip().splitlines():
                return lines[-1]
        return ""


def _read(written: IO[bytes], start: int) -> str:
    """Read from a byte on; where the command writes is left as it is."""
    return os.pread(written.fileno(), _READ_BYTES, start).decode(errors="replace")
