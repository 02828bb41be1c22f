"""The entrance that `python -m server` runs, in front of Flask.

Inferences are answered right on the event loop; every other route is the application's, on
a worker thread.
"""

import asyncio
import functools
import io
import sys
import urllib.parse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server.body import Announced, Limits, check_headers, check_length, read_length
from server.cors import NO_CORS, Cors
from server.errors import MalformedRequest, TooLarge, Unsupported
from server.http_connection import Underway
from server.http_message import Head, Message
from server.reply import Reply, failure
from server.request import Request, read_fields, request_id
from server.routes import Route
from server.service import Service, State
from server.target import check_host, check_target, split_target

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# Of these there can be one; two are how a request is smuggled past a proxy.
_SINGLE = frozenset(
    (
        "host",
        "content-type",
        "content-encoding",
        "content-length",
        "inference-header-content-length",
    )
)


class Front:
    """Answers the requests of connections; see `http_connection.Answers`.

    Args:
      app: the application.
      service: counts the requests.
      limits: of bodies.
      threads: how many requests of the application run at once.
      cors: says who else may read the answers; the application has its own.

    Attributes:
      held: counts the bytes of bodies.
      hot: paths to the routes that answer a POST there, with the named parts of each.
    """

    def __init__(
        self, app: Wsgi, service: Service, limits: Limits, threads: int, cors: Cors = NO_CORS
    ) -> None:
        self._app = app
        self._service = service
        self._limits = limits
        self._cors = cors
        self.held = service.held
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="http")
        self.hot: dict[bytes, tuple[Route, dict[str, str]]] = {}

    def admit(self, head: Head) -> Announced:
        """Give what the head says of the body; raises what refuses the request."""
        head.route = self._route(head)
        if not head.doubled.isdisjoint(_SINGLE):
            name = min(head.doubled & _SINGLE)
            raise MalformedRequest(f"{name}: expected one header of that name, got several")
        _check_framing(head)
        if head.route is not None:
            return check_headers(head.headers.get, self._limits)
        limit = self._limits.binary_bytes
        length = read_length(head.headers.get("content-length", "0"))
        if length > limit:
            raise TooLarge(f"body: expected at most {limit} bytes, got {length}")
        return Announced(None, limit, None, "")

    def answer(self, message: Message, done: Callable[[Reply], object]) -> Underway | None:
        """Answer a request; what is returned hears of its client's going before it is done."""
        head = message.head
        announced = head.announced
        if head.route is None or announced is None:
            self._ask_app(message, done)
            return None
        if self._cors:
            done = functools.partial(self._shared, head, done)
        route: Route
        route, parts = head.route
        try:
            check_length(message.body, announced)
            if head.fields is None:
                head.fields = read_fields(head.headers.get)
            packed = announced if announced.encoding else None
            request = Request(message.body, announced.json_bytes, head.fields, packed)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            done(route.refuse(self._service.metrics, error, request_id(head.headers.get)))
            return None
        return route.answer(self._service, request, parts, done)

    def _shared(self, head: Head, done: Callable[[Reply], object], made: Reply) -> None:
        """Pass an answer on with what is said of origins."""
        done(_with(made, self._cors, head))

    def _ask_app(self, message: Message, done: Callable[[Reply], object]) -> None:
        def called(call: asyncio.Future[Reply]) -> None:
            error = call.exception()
            done(call.result() if error is None else failure(error))

        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self._pool, _call, self._app, environ_of(message))
        call.add_done_callback(called)

    def refused(self, head: Head | None, error: Exception) -> Reply:
        """Write the refusal of a request that was not read."""
        made = failure(error, None if head is None else request_id(head.headers.get))
        if head is None or head.route is None:
            self._service.metrics.other("none", str(made.status))
        else:
            head.route[0].count(self._service.metrics, made, 0.0)
        return made if head is None else _with(made, self._cors, head)

    def closing(self) -> bool:
        """Say whether connections are to end with their answers."""
        return self._service.state not in (State.LOADING, State.READY)

    def _route(self, head: Head) -> tuple[Route, dict[str, str]] | None:
        """Find who infers, whatever comes before or behind the path.

        An inference that went to the application would hold one of its threads until it is
        answered, and a few of them the health check.
        """
        if head.method != "POST":
            return None
        found = self.hot.get(head.target)
        if found is None:
            path, _ = split_target(head.target)
            found = self.hot.get(path)
        return found


def _with(made: Reply, cors: Cors, head: Head) -> Reply:
    return made._replace(headers=made.headers + cors.headers(head.method, head.headers.get))


def _check_framing(head: Head) -> None:
    """Refuse what RFC 9112 has a server refuse, and httptools lets pass."""
    if head.version not in ("1.0", "1.1"):
        raise MalformedRequest(f"version: expected HTTP 1.0 or 1.1, got {head.version}")
    host = head.headers.get("host")
    if host is not None:
        check_host(host)
    elif head.version == "1.1":
        raise MalformedRequest("host: expected a header of that name, got none")
    check_target(head.method, head.target)
    coding = head.headers.get("transfer-encoding")
    if coding is not None and head.version == "1.0":
        raise MalformedRequest("transfer-encoding: expected none in HTTP 1.0")
    if coding is not None and coding.strip().lower() != "chunked":
        raise Unsupported(f"transfer-encoding: expected chunked, got {coding[:100]!r}")


def environ_of(message: Message) -> dict[str, Any]:
    """Write a request as PEP 3333 says."""
    head = message.head
    path, query = split_target(head.target)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": urllib.parse.unquote_to_bytes(path).decode("latin-1"),
        "RAW_URI": head.target.decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": f"HTTP/{head.version}",
        "REMOTE_ADDR": message.client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(message.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in head.headers.items():
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
