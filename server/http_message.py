"""A request as it came over HTTP, and an answer as it goes back."""

import dataclasses
import functools
import http
import time
from email.utils import formatdate

from server.reply import Reply


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
      body: all of it, as it came over the wire.
      keep_alive: whether the connection outlives the answer.
    """

    method: str
    target: bytes
    version: str
    headers: dict[str, str]
    doubled: set[str]
    client: str
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
    lines = [_status_line(made.status)]
    length: str | int = len(made.body)
    for name, value in made.headers:
        if name != "content-length":
            lines.append(f"{name}: {value}\r\n")
        elif head_only:
            length = value
    lines.append(f"content-length: {length}\r\ndate: {_date(int(time.monotonic()))}\r\n")
    lines.append("connection: close\r\n\r\n" if close else "\r\n")
    head = "".join(lines).encode("latin-1", "replace")
    return head if head_only else head + made.body


@functools.lru_cache(maxsize=64)
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nserver: hloserve\r\n"


@functools.lru_cache(maxsize=1)
def _date(_second: int) -> str:
    """Write the date once a second; RFC 9110 section 6.6.1 asks for it."""
    return formatdate(usegmt=True)
