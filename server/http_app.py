"""The Flask application: every HTTP route, under any WSGI server."""

import logging
import uuid
from typing import Any, BinaryIO

import orjson
from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException

from server.config import ServerConfig
from server.errors import MalformedRequest, TooLarge, UnsupportedMedia
from server.instances import arrays_from, row_sizes
from server.predictions import predictions_from
from server.service import Service
from server.status import INTERNAL_TEXT, status_of

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
# Without a type, and with the one that `curl -d` sends unasked, a body is taken for JSON.
_JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded")


def create_app(service: Service, config: ServerConfig) -> Flask:
    """Make the application.

    Args:
      service: answers; it may still be loading.
      config: routes and limits.
    """
    app = Flask("hloserve", static_folder=None)

    @app.post(config.predict_route)
    def predict() -> Response:
        return _predict(service, read_body(request, config.max_body_bytes))

    @app.get(config.health_route)
    def health() -> Response:
        state = "ready" if service.ready else "loading"
        return _json({"status": state}, 200 if service.ready else 503)

    @app.errorhandler(Exception)
    def fail(error: Exception) -> Response:
        return _failure(error)

    return app


def _predict(service: Service, body: bytes) -> Response:
    model = service.model
    instances = instances_of(body)
    arrays = arrays_from(instances, model.signature)
    outputs = service.predict(arrays)
    sizes = row_sizes(instances, model.signature) if model.signature.axes else ()
    predictions = predictions_from(outputs, model.signature, model.manifest.output_format, sizes)
    return _json({"predictions": predictions}, 200)


def instances_of(body: bytes) -> list[Any]:
    """Take `instances` out of a request body.

    Raises:
      MalformedRequest: not `{"instances": [...], "parameters": {...}}`.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"body: expected JSON, got {error}") from None
    if not isinstance(value, dict) or "instances" not in value:
        raise MalformedRequest('body: expected {"instances": [...]}, got none')
    unknown = sorted(set(value) - {"instances", "parameters"})
    if unknown:
        raise MalformedRequest(f"body: expected instances and parameters, got {unknown[0]!r}")
    if not isinstance(value["instances"], list):
        raise MalformedRequest("instances: expected an array, got something else")
    if not isinstance(value.get("parameters"), dict | None):
        raise MalformedRequest("parameters: expected an object, got something else")
    return value["instances"]


def read_body(incoming: Request, limit: int) -> bytes:
    """Read a request's JSON body whole, or refuse it.

    Werkzeug cuts a chunked body at its limit without a word, and several servers hand a
    short body over as if it were whole; so both are looked at here.

    Raises:
      UnsupportedMedia: not JSON in UTF-8, or compressed.
      TooLarge: more than `limit` bytes.
      MalformedRequest: fewer bytes than announced.
    """
    if incoming.mimetype not in _JSON_TYPES:
        raise UnsupportedMedia(
            f"content-type: expected application/json, got {incoming.mimetype!r}"
        )
    charset = incoming.mimetype_params.get("charset", "utf-8").lower()
    if charset != "utf-8":
        raise UnsupportedMedia(f"content-type: expected charset utf-8, got {charset!r}")
    if incoming.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMedia("content-encoding: expected none, got a compressed body")
    announced = incoming.content_length
    if announced is not None and announced > limit:
        raise TooLarge(f"body: expected at most {limit} bytes, got {announced}")
    body = _read(incoming.environ["wsgi.input"], limit if announced is None else announced)
    if announced is not None and len(body) < announced:
        raise MalformedRequest(f"body: expected {announced} bytes, got {len(body)}")
    if len(body) > limit:
        raise TooLarge(f"body: expected at most {limit} bytes, got more")
    return body


def _read(stream: BinaryIO, most: int) -> bytes:
    """Read up to one byte more than `most` where the length is unknown, so as to tell."""
    parts: list[bytes] = []
    left = most + 1
    while left > 0 and (part := stream.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _json(value: object, status: int, headers: dict[str, str] | None = None) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, mimetype="application/json")


def _failure(error: Exception) -> Response:
    identity = uuid.uuid4().hex
    if isinstance(error, HTTPException):
        status, slug = error.code or 500, (error.name or "error").lower().replace(" ", "_")
        text = f"{request.method} {request.path[:100]}: {error.name}"
        allowed = getattr(error, "valid_methods", None)
        headers = {"Allow": ", ".join(sorted(allowed))} if allowed else {}
        return _json({"error": text, "code": slug, "request_id": identity}, status, headers)
    known = status_of(error)
    if not known.public:
        log.error("request %s failed", identity, exc_info=error)
    text = str(error) if known.public else INTERNAL_TEXT
    headers = {"Retry-After": "1"} if known.http == 503 else {}
    return _json({"error": text, "code": known.slug, "request_id": identity}, known.http, headers)
