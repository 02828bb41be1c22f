"""Errors to what a client sees: the one table of codes."""

import dataclasses

from runtime.errors import BatchTooLarge, InvalidInput
from server.errors import (
    DeadlineExceeded,
    Draining,
    MalformedRequest,
    NotReady,
    OutOfMemory,
    Overloaded,
    TooLarge,
    UnsupportedMedia,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """What a client sees of an error.

    Attributes:
      http: the HTTP status.
      slug: a stable word for programs.
      public: whether the message is shown; otherwise a fixed sentence is.
    """

    http: int
    slug: str
    public: bool = True


_TABLE: dict[type[BaseException], Status] = {
    UnsupportedMedia: Status(415, "unsupported_media"),
    MalformedRequest: Status(400, "invalid_argument"),
    BatchTooLarge: Status(413, "too_large"),
    InvalidInput: Status(400, "invalid_argument"),
    TooLarge: Status(413, "too_large"),
    NotReady: Status(503, "not_ready"),
    Overloaded: Status(503, "queue_full"),
    Draining: Status(503, "draining"),
    OutOfMemory: Status(503, "out_of_memory"),
    DeadlineExceeded: Status(504, "deadline"),
}
INTERNAL = Status(500, "internal", public=False)
INTERNAL_TEXT = "internal error; the server's log says more"


def status_of(error: BaseException) -> Status:
    """Give the status of an error; everything unknown is internal."""
    for kind in type(error).__mro__:
        if kind in _TABLE:
            return _TABLE[kind]
    return INTERNAL
