"""A request as it came over HTTP, and an answer as it goes back."""

import dataclasses
import functools
import http
import time
from collections.abc import Iterable
from email.utils import formatdate
from typing import Any

from server.protocols.body import BodyInfo
from server.protocols.request import Fields
from server.protocols.response import Headers, Response

# A client's requests differ in their lengths if at all, so this is enough for many clients.
_KNOWN = 1024
_KNOWN_BYTES = 2048
# What a header of that name says, beside offers.
_CONNECTION = (b"close", b"keep-alive")


@dataclasses.dataclass(slots=True)
class RequestHead:
    """The head of a request.

    Attributes:
      method: as sent.
      target: path and query, as sent.
      version: of HTTP, such as 1.1.
      headers: by lower-case name; of several with one name the first.
      duplicates: names that came more than once.
      route: what answers it, as whoever admitted it knows it.
      body_info: what it says of the body, once that is accepted.
      fields: what it asks of routes, once that was read.
    """

    method: str
    target: bytes
    version: str
    headers: dict[str, str]
    duplicates: set[str]
    route: Any = None
    body_info: BodyInfo | None = None
    fields: Fields | None = None

    @property
    def expects_continue(self) -> bool:
        """Say whether the client waits to be told to send its body."""
        return self.version != "1.0" and self.headers.get("expect", "").lower() == "100-continue"


@dataclasses.dataclass(slots=True)
class Message:
    """A request. Made when its head is complete; its body comes later.

    Attributes:
      head: of which other requests may have the same.
      client: the address that it came from.
      body: all of it, as it came over the wire.
      keep_alive: whether the connection outlives the answer.
      counted: bytes of the body that count as held; see `held`.
    """

    head: RequestHead
    client: str
    body: bytes = b""
    keep_alive: bool = True
    counted: int = 0


class HeadCache:
    """Heads that were read before.

    Clients that keep a connection send the same head again and again. One that httptools has
    read means, byte for byte, what it meant then, and looking it up takes a fraction of the time.

    Only requests that came whole in one piece, with a body of a stated length that was
    accepted, and that leave the connection open are remembered.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[RequestHead, int]] = {}

    def get(self, data: bytes, client: str) -> Message | None:
        """Read a request whose head is known, if that and its body are all there is."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._heads.get(data[:end])
        if known is None or len(data) - end != known[1]:
            return None
        return Message(known[0], client, data[end:])

    def put(self, data: bytes, message: Message) -> None:
        """Keep the head of a request that was read from exactly this."""
        head, length = message.head, len(message.body)
        end = len(data) - length
        if (
            length
            and head.body_info is not None
            and head.body_info.length == length
            and message.keep_alive
            and not head.expects_continue
            and data.find(b"\r\n\r\n") + 4 == end <= _KNOWN_BYTES
        ):
            if len(self._heads) == _KNOWN:
                self._heads.clear()
            self._heads[data[:end]] = head, length


def without_offer(
    method: bytes, target: bytes, version: str, fields: Iterable[tuple[str, bytes]]
) -> bytes:
    """Write the head of a request without its offer to go on in another protocol.

    Args:
      method: as sent.
      target: as sent.
      version: of HTTP.
      fields: headers, their names in lower case.
    """
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    for name, value in fields:
        kept = value
        if name == "connection":
            kept = b", ".join(token for token in _CONNECTION if token in value.lower())
        if name != "upgrade" and kept:
            lines.append(b"%s: %s" % (name.encode("latin-1"), kept))
    return b"\r\n".join([*lines, b"", b""])


def write(made: Response, *, head_only: bool, connection: str) -> bytes:
    """Write an answer.

    Args:
      made: the answer.
      head_only: for HEAD, which gets the head of what GET would get.
      connection: what is said of it; empty where that goes without saying.
    """
    head = _head(made.status, made.headers, connection, int(time.monotonic()))
    if head_only:
        length = dict(made.headers).get("content-length", str(len(made.body)))
        return b"%scontent-length: %s\r\n\r\n" % (head, length.encode())
    return b"%scontent-length: %d\r\n\r\n%s" % (head, len(made.body), made.body)


@functools.lru_cache(maxsize=16)
def _head(status: int, headers: Headers, connection: str, _second: int) -> bytes:
    """Write a head but for its length; one of those that most answers of a second share.

    The date changes with the second; RFC 9110 section 6.6.1 asks for it.
    """
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", "server: hloserve"]
    lines += [f"{name}: {value}" for name, value in headers if name != "content-length"]
    lines.append(f"date: {formatdate(usegmt=True)}")
    if connection:
        lines.append(f"connection: {connection}")
    return "\r\n".join([*lines, ""]).encode("latin-1", "replace")
