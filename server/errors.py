"""What the server refuses, beside the runtime's own errors.

* MalformedRequest         not the JSON that the route takes
* UnsupportedMedia         a content type that the route does not read
* TooLarge                 more bytes than a request may have
* NotReady                 the model is still being loaded
"""

from runtime.errors import InvalidInput


class MalformedRequest(InvalidInput):
    """The body is not what the route takes."""


class UnsupportedMedia(InvalidInput):
    """The route does not read this content type or encoding."""


class TooLarge(Exception):
    """The request has more bytes than are accepted."""


class NotReady(Exception):
    """The model is still being loaded."""
