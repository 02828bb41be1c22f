"""The Flask application: every HTTP route, under any WSGI server."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from flask import Flask, request
from flask import Response as FlaskResponse
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import RequestRedirect

from runtime.errors import MalformedRequest
from server.batching.service import Service
from server.errors import BodyTimeout
from server.http.cors import NO_CORS, Cors
from server.http.routes import Done, Route
from server.limits import BodyLimits
from server.protocols import body
from server.protocols.request import Fields, Request, read_fields
from server.protocols.response import Headers, Response, error_response, exception_response
from server.request_id import request_id
from server.request_target import (
    METHODS,
    WHOLE_SERVER,
    check_host,
    check_target,
    is_canonical,
    spelt,
    split_target,
)

# Begins something on the service's event loop, and waits for its reply on the calling thread.
Wait = Callable[[Callable[[Done], object]], Response]


def make_wait(loop: asyncio.AbstractEventLoop) -> Wait:
    """Make what an application waits with, for a service on this loop."""

    def wait(begin: Callable[[Done], object]) -> Response:
        made: Future[Response] = Future()

        def run() -> None:
            try:
                begin(made.set_result)
            except BaseException as error:
                made.set_exception(error)
                raise

        loop.call_soon_threadsafe(run)
        return made.result()

    return wait


def create_app(
    service: Service,
    routes: tuple[Route, ...],
    limits: BodyLimits,
    wait: Wait,
    cors: Cors = NO_CORS,
) -> Flask:
    """Make the application.

    Args:
      service: counts the requests.
      routes: what is served.
      limits: of bodies.
      wait: begins something on the service's loop, and waits for it.
      cors: says which other origins may read the answers.
    """
    app = Flask("hloserve", static_folder=None)
    app.response_class = _Plain
    app.url_map.merge_slashes = False  # it answers by redirecting, with a page of HTML
    app.before_request(_check)

    def view(route: Route) -> Callable[..., FlaskResponse]:
        def answer(**parts: str) -> FlaskResponse:
            try:
                asked = _read(route, limits)
            except Exception as error:  # noqa: BLE001 (every error has an answer)
                identity, why = request_id(_header), error
                return _response(
                    wait(lambda done: done(route.refuse(service.metrics, why, identity)))
                )
            return _response(wait(lambda done: route.answer(service, asked, parts, done)))

        return answer

    for route in routes:
        endpoint = f"{route.method} {route.rule}"
        app.add_url_rule(route.rule, endpoint, view(route), methods=[route.method])

    @app.errorhandler(Exception)
    def fail(error: Exception) -> FlaskResponse:
        if isinstance(error, HTTPException):
            made = _refused(error)
        else:
            made = exception_response(error, request_id(_header))
        return _response(wait(lambda done: done(_counted(service, made))))

    @app.after_request
    def share(made: FlaskResponse) -> FlaskResponse:
        made.headers.extend(cors.headers(request.method, _header))
        return made

    return app


def _check() -> FlaskResponse | None:
    """Refuse a request by its host and its target, before it is given to a route.

    Raises:
      MalformedRequest: one of them is none.
      NotFound: the path is spelt otherwise than paths are.
    """
    host = request.environ.get("HTTP_HOST")
    if host is not None:
        check_host(host)
    elif request.environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
        raise MalformedRequest("host: expected a header of that name, got none")
    target = _target()
    check_target(request.method, target)
    if target == WHOLE_SERVER:
        return _Plain(headers={"allow": METHODS})
    decoded = request.environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace")
    if not is_canonical(split_target(target)[0]) or not is_canonical(spelt(decoded)):
        raise NotFound
    if isinstance(request.routing_exception, RequestRedirect):  # to a slash at the end
        raise NotFound
    return None


def _target() -> bytes:
    """Return the target as it was sent; what a server decodes it to, if it keeps nothing else."""
    environ = request.environ
    sent = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    return spelt(request.path) if sent is None else str(sent).encode("latin-1", "replace")


class _Plain(FlaskResponse):
    """An answer that has no type unless it is given one: to OPTIONS there is no body."""

    default_mimetype = None


def _counted(service: Service, made: Response) -> Response:
    service.metrics.count_request("none", str(made.status))
    return made


def _header(name: str) -> str | None:
    found = request.headers.get(name)
    if name == "transfer-encoding" and found is None and request.content_length is None:
        return "chunked" if request.environ.get("wsgi.input_terminated") else None
    return found


def _read(route: Route, limits: BodyLimits) -> Request:
    if not route.infers:
        return Request(fields=Fields(id=request_id(_header)))
    announced = body.check_headers(_header, limits)
    whole = _read_body(announced)
    return Request(whole, announced.json_bytes, read_fields(_header))


def _read_body(announced: body.BodyInfo) -> bytes:
    """Read the body; where the WSGI server lends its socket, as gunicorn does, not for ever."""
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        return body.read(request.environ["wsgi.input"], announced)
    # A client that stalls would keep its thread, and a few of them all threads.
    connection.settimeout(body.BODY_S)
    try:
        return body.read(request.environ["wsgi.input"], announced)
    except TimeoutError:
        raise BodyTimeout("body: expected all of it sooner") from None
    finally:
        connection.settimeout(None)


def _response(made: Response) -> FlaskResponse:
    return _Plain(made.body, made.status, list(made.headers))


def _refused(error: HTTPException) -> Response:
    """Write what Flask itself refuses: an unknown path, a method that a route lacks."""
    name = error.name or "error"
    allowed = getattr(error, "valid_methods", None)
    headers: Headers = (("allow", ", ".join(sorted(allowed))),) if allowed else ()
    path = split_target(_target())[0].decode("latin-1")
    text = f"{request.method} {path[:100]}: {name}"
    slug = name.lower().replace(" ", "_")
    return error_response(error.code or 500, slug, text, request_id(_header), headers)
