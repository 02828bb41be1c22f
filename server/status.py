"""Error codes: the HTTP status, gRPC status and code of each exception.

The gRPC codes are those of https://grpc.github.io/grpc/core/md_doc_statuscodes.html; where a
code has several uses, TensorFlow Serving's pairing of the two protocols is followed.
"""

import dataclasses
import logging

from runtime.errors import InvalidInput, MalformedRequest, NonFiniteOutput
from server.errors import (
    BodyTimeout,
    DeadlineExceeded,
    Draining,
    HeadersTooLarge,
    HeadTimeout,
    IncompleteBody,
    MethodNotAllowed,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    TooLarge,
    Unsupported,
    UnsupportedMedia,
)
from server.request_id import RequestId

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """What a client gets for an exception.

    Attributes:
      http: HTTP status code.
      grpc: name of the gRPC status.
      error_code: stable code for programs.
      public: whether the client gets the exception's message, or a fixed sentence.
    """

    http: int
    grpc: str
    error_code: str
    public: bool = True


_TABLE: dict[type[BaseException], Status] = {
    UnsupportedMedia: Status(415, "UNIMPLEMENTED", "unsupported_media"),
    MalformedRequest: Status(400, "INVALID_ARGUMENT", "invalid_argument"),
    IncompleteBody: Status(400, "INVALID_ARGUMENT", "incomplete_body"),
    InvalidInput: Status(400, "INVALID_ARGUMENT", "invalid_argument"),
    NotFound: Status(404, "NOT_FOUND", "not_found"),
    MethodNotAllowed: Status(405, "UNIMPLEMENTED", "method_not_allowed"),
    Unsupported: Status(501, "UNIMPLEMENTED", "unsupported"),
    TooLarge: Status(413, "RESOURCE_EXHAUSTED", "too_large"),
    HeadersTooLarge: Status(431, "RESOURCE_EXHAUSTED", "headers_too_large"),
    HeadTimeout: Status(408, "DEADLINE_EXCEEDED", "head_timeout"),
    BodyTimeout: Status(408, "DEADLINE_EXCEEDED", "body_timeout"),
    NotReady: Status(503, "UNAVAILABLE", "not_ready"),
    Overloaded: Status(503, "UNAVAILABLE", "queue_full"),
    Draining: Status(503, "UNAVAILABLE", "draining"),
    OutOfMemory: Status(503, "UNAVAILABLE", "out_of_memory"),
    DeadlineExceeded: Status(504, "DEADLINE_EXCEEDED", "deadline"),
    NonFiniteOutput: Status(500, "INTERNAL", "non_finite_output"),
}
INTERNAL = Status(500, "INTERNAL", "internal", public=False)
INTERNAL_TEXT = "internal error; the server's log says more"


def status_of(error: BaseException) -> Status:
    """Return the status of an exception; INTERNAL for types that are not in the table."""
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind]
    return INTERNAL


def explain(error: BaseException, identity: str) -> tuple[Status, str]:
    """Return the status of an exception and the message for the client; log an internal one.

    Args:
      error: the exception.
      identity: id of the request, for the log.
    """
    status = status_of(error)
    if status.public:
        return status, str(error)
    trace = identity.trace if isinstance(identity, RequestId) else None
    log.error("request %s failed", identity, exc_info=error, extra={"trace": trace})
    return status, INTERNAL_TEXT
