"""HTTP responses: JSON bodies and errors."""

import uuid
from typing import Any, NamedTuple

import numpy as np
import orjson

from server.errors import MethodNotAllowed
from server.status import explain

Headers = tuple[tuple[str, str], ...]

_JSON: Headers = (("content-type", "application/json"),)
RETRY_AFTER_S = "1"


class Response(NamedTuple):
    """An HTTP response.

    Attributes:
      status: HTTP status code.
      headers: (name, value) pairs, names in lower case.
      body: the complete body.
      error_code: code of the error, see `status`; None for a success.
    """

    status: int
    headers: Headers
    body: bytes
    error_code: str | None = None


def to_json(value: object) -> bytes:
    """Return a value as JSON; it may contain NumPy arrays and scalars. NaN becomes null."""
    return orjson.dumps(value, _elements, orjson.OPT_SERIALIZE_NUMPY)


def _elements(value: Any) -> Any:
    """Return what orjson can serialize for arrays that are not contiguous or hold objects."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype == object else value.copy()
    raise TypeError(type(value).__name__)


def json_response(value: object, status: int = 200, headers: Headers = ()) -> Response:
    """Return a response whose body is a value as JSON."""
    return Response(status, _JSON + headers, to_json(value))


def error_response(
    status: int, error_code: str, text: str, identity: str | None = None, headers: Headers = ()
) -> Response:
    """Return the response to a request that failed.

    Args:
      status: HTTP status code.
      error_code: for programs; see `status`.
      text: for people.
      identity: id of the request; a random one is made if there is none.
      headers: in addition to the content type.
    """
    request_id = identity or uuid.uuid4().hex
    body = to_json({"error": text, "code": error_code, "request_id": request_id})
    return Response(status, _JSON + headers, body, error_code)


def exception_response(error: BaseException, identity: str | None = None) -> Response:
    """Return the response for an exception; details of an internal error go to the log only.

    Args:
      error: the exception.
      identity: id of the request; a random one is made if there is none.
    """
    identity = identity or uuid.uuid4().hex
    status, text = explain(error, identity)
    headers: Headers = ()
    if status.http == 503:
        headers = (("retry-after", RETRY_AFTER_S),)
    elif isinstance(error, MethodNotAllowed):
        headers = (("allow", ", ".join(error.allowed)),)
    return error_response(status.http, status.error_code, text, identity, headers)
