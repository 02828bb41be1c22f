"""Request ids: X-Request-Id, or the id of the request's trace."""

import re
from collections.abc import Callable
from typing import Self

# Returns the first header of a lower-case name, or None.
Header = Callable[[str], str | None]

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header, and Google's older header.
_TRACE = re.compile(r"(?:[0-9a-f]{2}-)?(?!0{32})([0-9a-f]{32})(?:[-/;].{0,64})?")


class RequestId(str):
    """The id of a request, in its response and in the log.

    Attributes:
      trace: id of its trace, if it has one.
    """

    __slots__ = ("trace",)

    trace: str | None

    def __new__(cls, name: str, trace: str | None = None) -> Self:
        """Return an id with its trace."""
        self = super().__new__(cls, name)
        self.trace = trace
        return self


def request_id(header: Header) -> RequestId | None:
    """Return the client's X-Request-Id, or the id of its trace; None if neither is valid."""
    found = header("x-request-id")
    trace = header("traceparent") or header("x-cloud-trace-context")
    if found is None and trace is None:
        return None
    match = _TRACE.fullmatch(trace) if trace else None
    name = found if found is not None and REQUEST_ID.fullmatch(found) else match and match[1]
    if not name:
        return None
    return RequestId(name, match and match[1])
