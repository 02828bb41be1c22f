"""A request, whatever entrance it came through: its headers are read here, its body in `body`."""

import math
import re
from typing import NamedTuple, Self

from server.body import Announced, Header
from server.errors import MalformedRequest

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header, and what Google had before it.
_TRACE = re.compile(r"(?:[0-9a-f]{2}-)?(?!0{32})([0-9a-f]{32})(?:[-/;].{0,64})?")


class RequestId(str):
    """The name of a request in its answer and in the log.

    Attributes:
      trace: that it is part of, if any.
    """

    __slots__ = ("trace",)

    trace: str | None

    def __new__(cls, name: str, trace: str | None = None) -> Self:
        """Make one."""
        made = super().__new__(cls, name)
        made.trace = trace
        return made


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
    packed: Announced | None = None


def request_id(header: Header) -> RequestId | None:
    """Give the caller's X-Request-Id, or its trace; None if there is none that can be repeated."""
    found = header("x-request-id")
    trace = header("traceparent") or header("x-cloud-trace-context")
    if found is None and trace is None:
        return None
    match = _TRACE.fullmatch(trace) if trace else None
    name = found if found is not None and REQUEST_ID.fullmatch(found) else match and match[1]
    if not name:
        return None
    return RequestId(name, match and match[1])


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
