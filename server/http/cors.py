"""CORS: which pages of other origins may read responses.

https://fetch.spec.whatwg.org/#http-cors-protocol. Never with credentials: there are none here.
"""

from collections.abc import Iterable

from server.config import ANY_ORIGIN
from server.protocols.response import Headers
from server.request_id import Header

_METHODS = "GET, POST"
# Request headers that routes read, beside those that a page may always send.
_REQUEST_HEADERS = (
    "content-encoding",
    "content-type",
    "inference-header-content-length",
    "traceparent",
    "x-cloud-trace-context",
    "x-hloserve-evidence",
    "x-request-id",
    "x-request-timeout",
)
# Response headers, beside those that a page may always read.
_RESPONSE_HEADERS = (
    "inference-header-content-length",
    "retry-after",
    *(
        f"x-hloserve-{n}"
        for n in ("bucket", "bundle", "compute-us", "device", "padded-rows", "queue-us")
    ),
)
# How long a browser may cache the answer to a preflight request, in seconds.
_MAX_AGE_S = "600"


class Cors:
    """The CORS headers of responses.

    Args:
      origins: whose pages may read responses; `*` alone for all of them.
    """

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)

    def __bool__(self) -> bool:
        """Whether there are any origins."""
        return bool(self._origins)

    def headers(self, method: str, header: Header) -> Headers:
        """Return the headers to add to the response to a request.

        Args:
          method: of the request.
          header: returns a header of the request by its lower-case name.
        """
        if not self._origins:
            return ()
        anyone = ANY_ORIGIN in self._origins
        # Without it a cache would serve one origin's response to another.
        varies: Headers = () if anyone else (("vary", "Origin"),)
        origin = header("origin")
        if origin is None or not (anyone or origin in self._origins):
            return varies
        allowed: Headers = (("access-control-allow-origin", ANY_ORIGIN if anyone else origin),)
        if method == "OPTIONS" and header("access-control-request-method") is not None:
            return (
                *varies,
                *allowed,
                ("access-control-allow-methods", _METHODS),
                ("access-control-allow-headers", ", ".join(_REQUEST_HEADERS)),
                ("access-control-max-age", _MAX_AGE_S),
            )
        return (*varies, *allowed, ("access-control-expose-headers", ", ".join(_RESPONSE_HEADERS)))


# No page of another origin may read responses.
NO_CORS = Cors()
