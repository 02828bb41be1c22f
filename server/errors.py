"""What the server refuses, beside the runtime's own errors.

* IncompleteBody           a body that ended too soon
* UnsupportedMedia         a content type or encoding that the route does not read
* NotFound                 no such model, version or path
* MethodNotAllowed         the path has no such method
* Unsupported              a part of a protocol that is not served
* TooLarge                 more bytes or rows than a request may have
  - HeadersTooLarge        more bytes of headers
* HeadTimeout, BodyTimeout what began to come did not go on
* Unavailable              not now; another try may work
  - NotReady               the model is still being loaded, or has failed
  - Overloaded             the queue is full
  - Draining               the server is stopping
  - OutOfMemory            the device had no memory for this batch
* DeadlineExceeded         no answer within the request's time
"""

from collections.abc import Sequence

from runtime.errors import InvalidInput, MalformedRequest


class IncompleteBody(MalformedRequest):
    """The body ended before it was whole."""


class UnsupportedMedia(InvalidInput):
    """The route does not read this content type or encoding."""


class NotFound(Exception):
    """There is no such model, version or path."""


class MethodNotAllowed(Exception):
    """The path has other methods.

    Args:
      message: what was asked for.
      allowed: the methods of the path.
    """

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class Unsupported(Exception):
    """This part of a protocol is not served."""


class TooLarge(Exception):
    """The request has more bytes or rows than are accepted."""


class HeadersTooLarge(TooLarge):
    """The request has more bytes of headers than are accepted."""


class HeadTimeout(Exception):
    """The headers did not come in time."""


class BodyTimeout(Exception):
    """The body did not come in time."""


class Unavailable(Exception):
    """The server cannot answer now; another try may work."""


class NotReady(Unavailable):
    """The model is still being loaded, or has failed."""


class Overloaded(Unavailable):
    """The queue is full."""


class Draining(Unavailable):
    """The server is stopping."""


class OutOfMemory(Unavailable):
    """The device had no memory for this batch."""


class DeadlineExceeded(Exception):
    """There was no answer within the request's time."""
