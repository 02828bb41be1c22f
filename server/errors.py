"""Exceptions of the server, beside the runtime's; `status` maps them to status codes.

* IncompleteBody           the body ended early
* UnsupportedMedia         the content type or encoding is not supported
* NotFound                 no such model, version or path
* MethodNotAllowed         the path has no such method
* Unsupported              an extension of a protocol that is not served
* TooLarge                 more bytes or rows than a request may have
  - HeadersTooLarge        more bytes of headers
* HeadTimeout, BodyTimeout head or body were not received in time
* Unavailable              a retry may succeed
  - NotReady               the model is still being loaded, or has failed
  - Overloaded             the queue is full
  - Draining               the server is stopping
  - OutOfMemory            the device had no memory for this batch
* DeadlineExceeded         no answer within the request's time
"""

from collections.abc import Sequence

from runtime.errors import InvalidInput, MalformedRequest


class IncompleteBody(MalformedRequest):
    """The body ended before it was complete."""


class UnsupportedMedia(InvalidInput):
    """The content type or encoding is not supported."""


class NotFound(Exception):
    """There is no such model, version or path."""


class MethodNotAllowed(Exception):
    """The path does not have this method.

    Args:
      message: with the requested method and path.
      allowed: methods of the path.
    """

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class Unsupported(Exception):
    """This extension of a protocol is not served."""


class TooLarge(Exception):
    """The request has more bytes or rows than are accepted."""


class HeadersTooLarge(TooLarge):
    """The request has more bytes of headers than are accepted."""


class HeadTimeout(Exception):
    """The headers were not received in time."""


class BodyTimeout(Exception):
    """The body was not received in time."""


class Unavailable(Exception):
    """The server cannot answer now; a retry may succeed."""


class NotReady(Unavailable):
    """The model is still being loaded, or has failed."""


class Overloaded(Unavailable):
    """The queue is full."""


class Draining(Unavailable):
    """The server is stopping."""


class OutOfMemory(Unavailable):
    """The device had not enough memory for this batch."""


class DeadlineExceeded(Exception):
    """There was no answer within the request's time."""
