"""The WSGI application (Flask): every HTTP route, for gunicorn and other WSGI servers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from flask import Flask, request
from flask import Response as FlaskResponse

from runtime.errors import MalformedRequest
from server.batching.service import Service
from server.errors import BodyTimeout
from server.http.cors import NO_CORS, Cors
from server.http.router import Router
from server.http.routes import OnResponse, Route
from server.limits import BodyLimits
from server.protocols.body import BODY_S, BodyInfo, check_headers, read
from server.protocols.request_options import read_options
from server.protocols.response import Response, exception_response
from server.request_id import request_id
from server.request_target import (
    check_host,
    check_target,
    encode_path,
)

# Calls a function on the service's event loop, and waits in the calling thread for the response that
# the function passes on.
Wait = Callable[[Callable[[OnResponse], object]], Response]


def make_wait(loop: asyncio.AbstractEventLoop) -> Wait:
    """Return the `Wait` of an application whose service is on this loop."""

    def wait(function: Callable[[OnResponse], object]) -> Response:
        future: Future[Response] = Future()

        def run() -> None:
            try:
                function(future.set_result)
            except BaseException as error:
                future.set_exception(error)
                raise

        loop.call_soon_threadsafe(run)
        return future.result()

    return wait


def create_app(
    service: Service,
    routes: tuple[Route, ...],
    limits: BodyLimits,
    wait: Wait,
    cors: Cors = NO_CORS,
) -> Flask:
    """Return the application.

    Args:
      service: runs the model and counts the requests.
      routes: the routes that are served.
      limits: of bodies.
      wait: runs a function on the service's event loop, and waits for its response.
      cors: which other origins may read the responses.
    """
    app = Flask("hloserve", static_folder=None)
    app.response_class = _PlainResponse
    router = Router(routes)

    # Requests are matched by the router of both front ends, so that they are answered the same.
    @app.before_request
    def dispatch() -> FlaskResponse:
        target = _checked_target()
        path = request.environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace")
        if request.method == "OPTIONS":
            return _to_flask(router.options(target, path))
        route, variables = router.match_path(request.method, target, path)
        metrics = service.metrics
        identity = request_id(_header)
        if not route.infers:
            return _on_loop(wait, lambda: route.respond(metrics, variables, identity))
        try:
            info = check_headers(_header, limits, route.raw_types(service))
            body = _read_body(info)
            options = read_options(_header)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            refused = error
            return _on_loop(wait, lambda: route.refuse(metrics, refused, identity))
        return _to_flask(
            wait(lambda done: route.infer(service, body, info, options, variables, done))
        )

    @app.errorhandler(Exception)
    def fail(error: Exception) -> FlaskResponse:
        def respond() -> Response:
            response = exception_response(error, request_id(_header))
            service.metrics.count_request("none", str(response.status))
            return response

        return _on_loop(wait, respond)

    @app.after_request
    def share(response: FlaskResponse) -> FlaskResponse:
        response.headers.extend(cors.headers(request.method, _header))
        return response

    return app


def _checked_target() -> bytes:
    """Return the target of the request.

    Raises:
      MalformedRequest: host or target are invalid.
    """
    host = request.environ.get("HTTP_HOST")
    if host is not None:
        check_host(host)
    elif request.environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
        raise MalformedRequest("host: expected a header of that name, got none")
    target = _target()
    check_target(request.method, target)
    return target


def _target() -> bytes:
    """Return the target as it was sent; from the decoded path, if the WSGI server has nothing else."""
    environ = request.environ
    sent = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    return encode_path(request.path) if sent is None else str(sent).encode("latin-1", "replace")


class _PlainResponse(FlaskResponse):
    """A response without a default content type: that to OPTIONS has no body."""

    default_mimetype = None


def _header(name: str) -> str | None:
    value = request.headers.get(name)
    if name == "transfer-encoding" and value is None and request.content_length is None:
        return "chunked" if request.environ.get("wsgi.input_terminated") else None
    return value


def _read_body(info: BodyInfo) -> bytes:
    """Return the body; with a timeout if the WSGI server exposes the socket, as gunicorn does."""
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        return read(request.environ["wsgi.input"], info)
    # A client that stalls would occupy its thread, and a few of them all threads.
    connection.settimeout(BODY_S)
    try:
        return read(request.environ["wsgi.input"], info)
    except TimeoutError:
        raise BodyTimeout("body: expected all of it sooner") from None
    finally:
        connection.settimeout(None)


def _on_loop(wait: Wait, respond: Callable[[], Response]) -> FlaskResponse:
    """Return the response that a function makes on the event loop, which owns the metrics."""
    return _to_flask(wait(lambda done: done(respond())))


def _to_flask(response: Response) -> FlaskResponse:
    return _PlainResponse(response.body, response.status, list(response.headers))
