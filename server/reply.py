"""What goes back to a client, whatever entrance it came through."""

import dataclasses
import logging
import uuid

import orjson

from server.status import INTERNAL_TEXT, status_of

log = logging.getLogger(__name__)

Headers = tuple[tuple[str, str], ...]

_JSON: Headers = (("content-type", "application/json"),)
RETRY_AFTER_S = "1"


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A status, headers in lower case, and a body."""

    status: int
    headers: Headers
    body: bytes


def reply(value: object, status: int = 200, headers: Headers = ()) -> Reply:
    """Write a value, NumPy arrays in it or not, as JSON."""
    return Reply(status, _JSON + headers, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def refusal(status: int, slug: str, text: str, identity: str = "", headers: Headers = ()) -> Reply:
    """Write an error the way all errors are written."""
    request_id = identity or uuid.uuid4().hex
    return reply({"error": text, "code": slug, "request_id": request_id}, status, headers)


def failure(error: BaseException) -> Reply:
    """Write an exception; of an internal one only the log learns more."""
    status = status_of(error)
    identity = uuid.uuid4().hex
    if not status.public:
        log.error("request %s failed", identity, exc_info=error)
    text = str(error) if status.public else INTERNAL_TEXT
    headers: Headers = (("retry-after", RETRY_AFTER_S),) if status.http == 503 else ()
    return refusal(status.http, status.slug, text, identity, headers)
