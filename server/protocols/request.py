"""A request, whatever entrance it came through: its headers are read here, its body in `body`."""

import math
from typing import NamedTuple

from runtime.errors import MalformedRequest
from server.protocols.body import BodyInfo
from server.request_id import Header, RequestId, request_id


class Fields(NamedTuple):
    """What a request's headers ask of a route.

    Attributes:
      timeout_s: the caller's own time limit.
      evidence: whether the answer says how it came about.
      id: the caller's name for it, to be given back, or its trace's.
    """

    timeout_s: float | None = None
    evidence: bool = False
    id: RequestId | None = None


class Request(NamedTuple):
    """What a route needs of a request.

    Attributes:
      body: all of it.
      json_bytes: of JSON that the body begins with; None if it is JSON as a whole.
      fields: what its headers ask.
      packed: how the body is compressed; None if it is not, or not any more.
    """

    body: bytes = b""
    json_bytes: int | None = None
    fields: Fields = Fields()
    packed: BodyInfo | None = None


def read_fields(header: Header) -> Fields:
    """Read the headers that routes heed.

    Raises:
      MalformedRequest: one does not read.
    """
    return Fields(
        _timeout(header("x-request-timeout")),
        header("x-hloserve-evidence") in ("1", "true"),
        request_id(header),
    )


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = math.nan if "_" in text else float(text)  # Python reads 1_0 as 10
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise MalformedRequest(f"x-request-timeout: expected seconds, got {text[:100]!r}")
    return seconds
