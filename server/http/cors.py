"""Answers to pages of other origins: which may read them.

https://fetch.spec.whatwg.org/#http-cors-protocol. Never with credentials: there are none here.
"""

from collections.abc import Iterable

from server.config import ANY_ORIGIN
from server.protocols.response import Headers
from server.request_id import Header

_METHODS = "GET, POST"
# What routes read of a request, beside what a page may always send.
_READ = (
    "content-encoding",
    "content-type",
    "inference-header-content-length",
    "traceparent",
    "x-cloud-trace-context",
    "x-hloserve-evidence",
    "x-request-id",
    "x-request-timeout",
)
# What routes send, beside what a page may always read.
_SENT = (
    "inference-header-content-length",
    "retry-after",
    *(f"x-hloserve-{n}" for n in ("bucket", "bundle", "compute-us", "padded-rows", "queue-us")),
)
# How long a browser need not ask again, in seconds.
_AGE_S = "600"


class Cors:
    """What is said of origins.

    Args:
      origins: whose pages may read answers; `*` alone for all of them.
    """

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(self._origins)

    def headers(self, method: str, header: Header) -> Headers:
        """Return what to add to the answer to a request.

        Args:
          method: of the request.
          header: gives a header of it by its lower-case name.
        """
        if not self._origins:
            return ()
        anyone = ANY_ORIGIN in self._origins
        # Without it a cache would give one origin's answer to another.
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
                ("access-control-allow-headers", ", ".join(_READ)),
                ("access-control-max-age", _AGE_S),
            )
        return (*varies, *allowed, ("access-control-expose-headers", ", ".join(_SENT)))


# Says nothing: no page of another origin reads an answer.
NO_CORS = Cors()
