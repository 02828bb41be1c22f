"""The Flask application: every HTTP route, under any WSGI server."""

from collections.abc import Callable, Coroutine
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from server import body, vertex
from server.config import ServerConfig
from server.reply import Headers, Reply, failure, refusal, reply
from server.service import Service, State

# Runs a coroutine on the service's event loop, and waits for it on the calling thread.
Wait = Callable[[Coroutine[Any, Any, Reply]], Reply]


def create_app(service: Service, config: ServerConfig, wait: Wait) -> Flask:
    """Make the application.

    Args:
      service: answers; it may still be loading.
      config: routes and limits.
      wait: runs a coroutine on the service's loop.
    """
    app = Flask("hloserve", static_folder=None)

    @app.post(config.predict_route)
    def predict() -> Response:
        return _response(wait(vertex.predict(service, _read_body(config.max_body_bytes))))

    @app.get(config.health_route)
    def health() -> Response:
        status = 200 if service.state is State.READY else 503
        return _response(reply({"status": service.state.value}, status))

    @app.errorhandler(Exception)
    def fail(error: Exception) -> Response:
        return _response(_refused(error) if isinstance(error, HTTPException) else failure(error))

    return app


def _read_body(limit: int) -> bytes:
    headers = request.headers
    announced = body.check_headers(
        headers.get("Content-Type"),
        headers.get("Content-Encoding"),
        headers.get("Content-Length"),
        limit,
    )
    return body.read(request.environ["wsgi.input"], announced, limit)


def _response(made: Reply) -> Response:
    return Response(made.body, made.status, list(made.headers))


def _refused(error: HTTPException) -> Reply:
    """Write what Flask itself refuses: an unknown path, a method that a route lacks."""
    name = error.name or "error"
    allowed = getattr(error, "valid_methods", None)
    headers: Headers = (("allow", ", ".join(sorted(allowed))),) if allowed else ()
    text = f"{request.method} {request.path[:100]}: {name}"
    return refusal(error.code or 500, name.lower().replace(" ", "_"), text, headers=headers)
