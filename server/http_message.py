"""A request as it came over HTTP, and an answer as it goes back."""

import dataclasses
import functools
import http
import time
from email.utils import formatdate

from server.body import Announced
from server.reply import Headers, Reply

# A client's requests differ in their lengths if at all, so this is enough for many clients.
_KNOWN = 1024
_KNOWN_BYTES = 2048


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


class Heads:
    """Heads that were read before, with what they said.

    Clients that keep a connection send the same head again and again. One that httptools has
    read means, byte for byte, what it meant then, and looking it up takes a fraction of the time.

    Only requests that came whole in one piece, with a body of a stated length that was
    accepted, and that leave the connection open are remembered.
    """

    def __init__(self) -> None:
        self._messages: dict[bytes, Message] = {}

    def recall(self, data: bytes, client: str) -> Message | None:
        """Read a request whose head is known, if that and its body are all there is."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._messages.get(data[:end])
        if known is None or known.announced is None:
            return None
        if len(data) - end != known.announced.length:
            return None
        return Message(
            known.method,
            known.target,
            known.version,
            known.headers,
            known.doubled,
            client,
            known.announced,
            data[end:],
        )

    def remember(self, data: bytes, message: Message) -> None:
        """Keep the head of a request that was read from exactly this."""
        length = len(message.body)
        end = len(data) - length
        announced = message.announced
        if (
            length
            and announced is not None
            and announced.length == length
            and message.keep_alive
            and not message.expects_continue
            and data.find(b"\r\n\r\n") + 4 == end <= _KNOWN_BYTES
        ):
            if len(self._messages) == _KNOWN:
                self._messages.clear()
            self._messages[data[:end]] = dataclasses.replace(message, body=b"", client="")


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
