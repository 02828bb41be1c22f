"""The entrance that `python -m server` runs: granian's embedded server in front of Flask.

granian reads connections in Rust threads and calls `Front` on the event loop. Inferences
are answered right there; every other route is the application's, on a worker thread.
"""

import asyncio
import io
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.rsgi import ProtocolClosed, ProtocolError
from granian.server.embed import Server

from server.body import Announced, Limits, check_headers, check_length
from server.errors import MalformedRequest
from server.reply import Reply, failure, refusal
from server.request import make_request, request_id
from server.routes import Route
from server.service import Service, State
from server.watch import Entry, Watch

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# Above what a load balancer opens; the kernel queues the rest.
CONNECTIONS = 2048
# Longer than the idle time of the load balancers in use (Google's: 600 s), so that none
# of them sends a request into a connection that closes.
KEEP_ALIVE_MS = 620_000
# Of these there can be one; two are how a request is smuggled past a proxy.
_SINGLE = ("host", "content-type", "inference-header-content-length")


class Front:
    """Answers inferences on the event loop, and everything else with the application.

    Args:
      app: the application.
      service: counts the requests.
      limits: of bodies.
      threads: how many requests of the application run at once.
      watch: ends requests that nobody waits for.

    Attributes:
      hot: paths to the routes that answer a POST there, with the named parts of each.
    """

    def __init__(
        self, app: Wsgi, service: Service, limits: Limits, threads: int, watch: Watch
    ) -> None:
        self._app = app
        self._service = service
        self._limits = limits
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="http")
        self._watch = watch
        self.hot: dict[str, tuple[Route, dict[str, str]]] = {}

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request; granian calls this on the event loop."""
        hot = self.hot.get(scope.path) if scope.method == "POST" else None
        entry = self._watch.enter(protocol)
        try:
            made = await (
                self._cold(scope, entry) if hot is None else self._hot(*hot, scope, entry)
            )
        except (ProtocolClosed, ProtocolError):
            made = self._unread(400, "incomplete_body", "body: expected all of it, got less")
        except asyncio.CancelledError:
            if not entry.reading:
                return
            made = self._unread(408, "body_timeout", "body: expected all of it sooner, got less")
        finally:
            self._watch.leave(entry)
        headers = list(made.headers)
        if entry.reading or self._service.state is not State.READY:
            headers.append(("connection", "close"))
        protocol.response_bytes(made.status, headers, made.body)

    async def _hot(self, route: Route, parts: dict[str, str], scope: Any, entry: Entry) -> Reply:
        header = scope.headers.get
        metrics = self._service.metrics
        try:
            _refuse_doubles(scope.headers)
            announced = check_headers(header, self._limits)
            body = check_length(await _read(entry.protocol, announced), announced)
            request = make_request(header, body, announced.json_bytes)
        except (ProtocolClosed, ProtocolError):
            raise
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            return await route.refuse(metrics, error, request_id(header))
        entry.reading = False
        return await route.answer(metrics, request, parts)

    def _unread(self, status: int, slug: str, text: str) -> Reply:
        self._service.metrics.other("none", str(status))
        return refusal(status, slug, text)

    async def _cold(self, scope: Any, entry: Entry) -> Reply:
        try:
            _refuse_doubles(scope.headers)
        except MalformedRequest as error:
            self._service.metrics.other("none", "400")
            return failure(error, request_id(scope.headers.get))
        environ = _environ(scope)
        limit = self._limits.binary_bytes
        length = environ.get("CONTENT_LENGTH", "0")
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        # A body that is too large is left where it is: the application refuses it unread.
        if chunked or (length.isdecimal() and int(length) <= limit):
            announced = Announced(None if chunked else int(length), limit, None, "")
            environ["wsgi.input"] = io.BytesIO(await _read(entry.protocol, announced))
            entry.reading = False
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, _call, self._app, environ)


async def _read(protocol: Any, announced: Announced) -> bytes:
    """Read a body; of one in chunks no more than the one that goes beyond the limit.

    Raises:
      ProtocolError: the client went before its body was whole. (For one in chunks granian
        does not tell; what came is not legal JSON, or not as many bytes as it says.)
    """
    if announced.length == 0:
        return b""
    if announced.length is not None:
        return await protocol()  # type: ignore[no-any-return]
    parts = []
    left = announced.limit
    async for part in protocol:
        parts.append(part)
        left -= len(part)
        if left < 0:
            break
    return b"".join(parts)


def _refuse_doubles(headers: Any) -> None:
    for name in _SINGLE:
        if len(headers.get_all(name)) > 1:
            raise MalformedRequest(f"{name}: expected one header of that name, got several")


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
        "PATH_INFO": scope.path.encode().decode("latin-1"),  # as WSGI has it
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


def _call(app: Wsgi, environ: dict[str, Any]) -> Reply:
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
    return Reply(status, tuple(headers), body)
