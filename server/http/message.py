"""HTTP messages: parsed requests, a cache of parsed heads, and serialized responses."""

import dataclasses
import functools
import http
import time
from collections.abc import Iterable, Mapping
from email.utils import formatdate

from server.http.routes import Route
from server.protocols.body import BodyInfo
from server.protocols.request_options import RequestOptions
from server.protocols.response import Headers, Response

# Heads of one client differ in the length of the body if at all, so this is enough for many clients.
_CACHED_HEADS = 1024
_CACHED_HEAD_BYTES = 2048
# Connection options, beside those that go with an offer to upgrade.
_CONNECTION = (b"close", b"keep-alive")


@dataclasses.dataclass(slots=True)
class RequestHead:
    """The head of a request; requests with the same head share it.

    Attributes:
      method: as sent.
      target: path and query, as sent.
      version: of HTTP, such as 1.1.
      headers: by lower-case name; the first of several with one name.
      duplicates: names that were sent more than once.
      keep_alive: whether the connection stays open after the response.
      match: the inference route and the variables of its path; None for all other requests.
      body_info: what the headers say about the body, once they are accepted.
      options: of an inference, once they are parsed.
    """

    method: str
    target: bytes
    version: str
    headers: dict[str, str]
    duplicates: set[str]
    keep_alive: bool = True
    match: tuple[Route, Mapping[str, str]] | None = None
    body_info: BodyInfo | None = None
    options: RequestOptions | None = None

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for an interim response before it sends the body."""
        return self.version != "1.0" and self.headers.get("expect", "").lower() == "100-continue"


@dataclasses.dataclass(slots=True)
class Request:
    """A complete request.

    Attributes:
      head: its head, which other requests may share.
      body: the complete body, as received.
      counted: bytes of the body that the memory budget counts.
    """

    head: RequestHead
    body: bytes
    counted: int = 0


class HeadCache:
    """Cache of parsed heads, by their bytes.

    Clients that keep a connection open send the same head with every request. Equal bytes parse to
    equal heads, and a lookup takes a fraction of the time.

    Cached are the heads of requests that were received in one piece, have a body with an accepted
    content-length, and keep the connection open.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[RequestHead, int]] = {}

    def get(self, data: bytes) -> Request | None:
        """Return the request if data is exactly a cached head and its body, else None."""
        end = data.find(b"\r\n\r\n") + 4
        cached = self._heads.get(data[:end])
        if cached is None or len(data) - end != cached[1]:
            return None
        return Request(cached[0], data[end:])

    def put(self, data: bytes, request: Request) -> None:
        """Cache the head of a request that was parsed from exactly this data, if it qualifies."""
        head, length = request.head, len(request.body)
        end = len(data) - length
        if (
            length
            and head.body_info is not None
            and head.body_info.length == length
            and head.keep_alive
            and not head.expects_continue
            and data.find(b"\r\n\r\n") + 4 == end <= _CACHED_HEAD_BYTES
        ):
            if len(self._heads) == _CACHED_HEADS:
                self._heads.clear()
            self._heads[data[:end]] = head, length


def without_upgrade(
    method: bytes, target: bytes, version: str, fields: Iterable[tuple[str, bytes]]
) -> bytes:
    """Return the head of a request without its offer to upgrade to another protocol.

    Args:
      method: as sent.
      target: as sent.
      version: of HTTP.
      fields: headers, their names in lower case.
    """
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    for name, value in fields:
        sent = value
        if name == "connection":
            sent = b", ".join(token for token in _CONNECTION if token in value.lower())
        if name != "upgrade" and sent:
            lines.append(b"%s: %s" % (name.encode("latin-1"), sent))
    return b"\r\n".join([*lines, b"", b""])


def serialize(response: Response, *, head_only: bool, connection: str) -> bytes:
    """Return a response as bytes.

    Args:
      response: the response.
      head_only: whether the method is HEAD: the response to GET without its body.
      connection: value of the connection header; empty for none.
    """
    head = _head(response.status, response.headers, connection, int(time.monotonic()))
    if head_only:
        length = dict(response.headers).get("content-length", str(len(response.body)))
        return b"%scontent-length: %s\r\n\r\n" % (head, length.encode())
    return b"%scontent-length: %d\r\n\r\n%s" % (head, len(response.body), response.body)


@functools.lru_cache(maxsize=16)
def _head(status: int, headers: Headers, connection: str, _second: int) -> bytes:
    """Return a head without its content-length; most responses of one second share it.

    RFC 9110 section 6.6.1 requires the date, which changes every second.
    """
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", "server: hloserve"]
    lines += [f"{name}: {value}" for name, value in headers if name != "content-length"]
    lines.append(f"date: {formatdate(usegmt=True)}")
    if connection:
        lines.append(f"connection: {connection}")
    return "\r\n".join([*lines, ""]).encode("latin-1", "replace")
