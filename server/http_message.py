"""A request as it came over HTTP, and an answer as it goes back."""

import dataclasses
import functools
import http
import time
from email.utils import formatdate

from server.body import Announced
from server.reply import Headers, Reply


@dataclasses.dataclass(slots=True)
class Message:
    """A request. Made when its head is complete; its body comes later.

    Attributes:
      method: as sent.
      target: path and query, as sent.
      version: of HTTP, such as 1.1.
      headers: by lower-case name; of several with one name the first.
      doubled: names that came more than once.
      client: the address that it came from.
      announced: what its head says of its body, once that is accepted.
      body: all of it, as it came over the wire.
      keep_alive: whether the connection outlives the answer.
    """

    method: str
    target: bytes
    version: str
    headers: dict[str, str]
    doubled: set[str]
    client: str
    announced: Announced | None = None
    body: bytes = b""
    keep_alive: bool = True

    @property
    def expects_continue(self) -> bool:
        """Say whether the client waits to be told to send its body."""
        return self.headers.get("expect", "").lower() == "100-continue"


def write(made: Reply, *, head_only: bool, close: bool) -> bytes:
    """Write an answer.

    Args:
      made: the answer.
      head_only: for HEAD, which gets the head of what GET would get.
      close: whether the connection ends with it.
    """
    head = _head(made.status, made.headers, close, int(time.monotonic()))
    if head_only:
        length = dict(made.headers).get("content-length", str(len(made.body)))
        return b"%scontent-length: %s\r\n\r\n" % (head, length.encode())
    return b"%scontent-length: %d\r\n\r\n%s" % (head, len(made.body), made.body)


@functools.lru_cache(maxsize=16)
def _head(status: int, headers: Headers, close: bool, _second: int) -> bytes:
    """Write a head but for its length; one of those that most answers of a second share.

    The date changes with the second; RFC 9110 section 6.6.1 asks for it.
    """
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", "server: hloserve"]
    lines += [f"{name}: {value}" for name, value in headers if name != "content-length"]
    lines.append(f"date: {formatdate(usegmt=True)}")
    if close:
        lines.append("connection: close")
    return "\r\n".join([*lines, ""]).encode("latin-1", "replace")
