"""A request, whatever entrance it came through: its headers are read here, its body in `body`."""

import math
import re
from typing import NamedTuple

from server.body import Header
from server.errors import MalformedRequest

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Request(NamedTuple):
    """What a route needs of a request.

    Attributes:
      body: all of it, decompressed.
      json_bytes: of JSON that the body begins with; None if it is JSON as a whole.
      timeout_s: the caller's own time limit.
      evidence: whether the answer says how it came about.
      id: the caller's name for it, to be given back.
    """

    body: bytes = b""
    json_bytes: int | None = None
    timeout_s: float | None = None
    evidence: bool = False
    id: str | None = None


def request_id(header: Header) -> str | None:
    """Give the caller's X-Request-Id; None if there is none, or one that is better not repeated."""
    found = header("x-request-id")
    return found if found is not None and REQUEST_ID.fullmatch(found) else None


def make_request(header: Header, body: bytes, json_bytes: int | None) -> Request:
    """Read the headers that routes heed.

    Raises:
      MalformedRequest: one does not read.
    """
    return Request(
        body,
        json_bytes,
        _timeout(header("x-request-timeout")),
        header("x-hloserve-evidence") in ("1", "true"),
        request_id(header),
    )


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise MalformedRequest(f"x-request-timeout: expected seconds, got {text[:100]!r}")
    return seconds
