"""What goes back to a client, whatever entrance it came through."""

import uuid
from typing import Any, NamedTuple

import numpy as np
import orjson

from server.status import explain

Headers = tuple[tuple[str, str], ...]

_JSON: Headers = (("content-type", "application/json"),)
RETRY_AFTER_S = "1"


class Response(NamedTuple):
    """What goes back.

    Attributes:
      status: of HTTP.
      headers: names in lower case.
      body: all of it.
      slug: why the request failed, if it did; see `status`.
    """

    status: int
    headers: Headers
    body: bytes
    slug: str | None = None


def to_json(value: object) -> bytes:
    """Write a value as JSON, NumPy arrays and scalars in it or not; NaN becomes null."""
    return orjson.dumps(value, _elements, orjson.OPT_SERIALIZE_NUMPY)


def _elements(value: Any) -> Any:
    """Give what orjson cannot write itself: arrays of objects, or such as are not contiguous."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype == object else value.copy()
    raise TypeError(type(value).__name__)


def json_response(value: object, status: int = 200, headers: Headers = ()) -> Response:
    """Write a value as JSON."""
    return Response(status, _JSON + headers, to_json(value))


def error_response(
    status: int, slug: str, text: str, identity: str | None = None, headers: Headers = ()
) -> Response:
    """Write an error the way all errors are written."""
    request_id = identity or uuid.uuid4().hex
    body = to_json({"error": text, "code": slug, "request_id": request_id})
    return Response(status, _JSON + headers, body, slug)


def exception_response(error: BaseException, identity: str | None = None) -> Response:
    """Write an exception; of an internal one only the log learns more.

    Args:
      error: what happened.
      identity: the caller's name for the request.
    """
    identity = identity or uuid.uuid4().hex
    status, text = explain(error, identity)
    headers: Headers = (("retry-after", RETRY_AFTER_S),) if status.http == 503 else ()
    return error_response(status.http, status.slug, text, identity, headers)
