"""The name of a request: the client's own, or that of the trace it is part of."""

import re
from collections.abc import Callable
from typing import Self

# Return the first header of a (lower case) name, or None.
Header = Callable[[str], str | None]

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
