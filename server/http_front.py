"""The entrance that `python -m server` runs: granian's embedded server in front of Flask.

granian reads connections in Rust threads and calls `Front` on the event loop. Predictions
are answered right there; every other route is the application's, on a worker thread.
"""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.rsgi import ProtocolClosed, ProtocolError
from granian.server.embed import Server

from server.body import check_headers, check_length
from server.reply import Reply, failure

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Hot = Callable[[bytes], Awaitable[Reply]]
Answer = tuple[int, list[tuple[str, str]], bytes]

# Above what a load balancer opens; the kernel queues the rest.
CONNECTIONS = 2048
# Longer than the idle time of the load balancers in use (Google's: 600 s), so that none
# of them sends a request into a connection that closes.
KEEP_ALIVE_MS = 620_000


class Front:
    """Answers predictions on the event loop, and everything else with the application.

    Args:
      app: the application.
      hot: paths to the coroutines that answer a POST there, given the body.
      limit: largest body that is read.
      threads: how many requests of the application run at once.
    """

    def __init__(self, app: Wsgi, hot: Mapping[str, Hot], limit: int, threads: int) -> None:
        self._app = app
        self._hot = hot
        self._limit = limit
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="http")

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request; granian calls this on the event loop."""
        hot = self._hot.get(scope.path) if scope.method == "POST" else None
        if hot is None:
            await self._cold(scope, protocol)
            return
        try:
            get = scope.headers.get
            announced = check_headers(
                get("content-type"), get("content-encoding"), get("content-length"), self._limit
            )
            body = check_length(await protocol(), announced, self._limit)
            made = await hot(body)
        except (ProtocolClosed, ProtocolError):
            return
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            made = failure(error)
        protocol.response_bytes(made.status, list(made.headers), made.body)

    async def _cold(self, scope: Any, protocol: Any) -> None:
        environ = _environ(scope)
        length = environ.get("CONTENT_LENGTH", "0")
        if not length.isdecimal() or int(length) <= self._limit:
            try:
                # The length is within the limit, or the body is chunked and ends at it.
                environ["wsgi.input"] = io.BytesIO(await protocol())
            except (ProtocolClosed, ProtocolError):
                return
        loop = asyncio.get_running_loop()
        status, headers, body = await loop.run_in_executor(self._pool, _call, self._app, environ)
        protocol.response_bytes(status, headers, body)


def make_server(front: Front, host: str, port: int) -> Server:
    """Make the embedded server; `await serve()` runs it and `stop()` ends it."""
    return Server(
        front,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        # Protocol detection lets silent connections hold up others for seconds.
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=KEEP_ALIVE_MS),
        websockets=False,
        backlog=CONNECTIONS,
        backpressure=CONNECTIONS,
        log_enabled=False,
    )


def _environ(scope: Any) -> dict[str, Any]:
    host, _, port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path,
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ


def _call(app: Wsgi, environ: dict[str, Any]) -> Answer:
    """Run the application to its end, on a worker thread."""
    started: list[tuple[int, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
        started.append((int(status.split(" ", 1)[0]), [(k.lower(), v) for k, v in headers]))

    parts = app(environ, start_response)
    try:
        body = b"".join(parts)
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()
    status, headers = started[-1]
    return status, headers, body
