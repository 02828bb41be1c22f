"""Request headers that an inference is controlled by: its timeout, its metadata, its id."""

import math
from typing import NamedTuple

from runtime.errors import MalformedRequest
from server.request_id import Header, RequestId, request_id


class RequestOptions(NamedTuple):
    """What the headers of a request ask for, beside its body.

    Attributes:
      timeout_s: the client's own time limit.
      metadata: whether the response has headers with the inference's metadata.
      id: the client's id for the request, or the id of its trace.
    """

    timeout_s: float | None = None
    metadata: bool = False
    id: RequestId | None = None


def read_options(header: Header) -> RequestOptions:
    """Return the options in a request's headers.

    Args:
      header: returns a header by its lower-case name.

    Raises:
      MalformedRequest: the timeout is not a finite, non-negative number.
    """
    return RequestOptions(
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
