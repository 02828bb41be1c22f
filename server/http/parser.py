"""HTTP/1 request parser: httptools callbacks to requests, with limits of head and body."""

from typing import Protocol

import httptools

from runtime.errors import MalformedRequest
from server.batching.memory_budget import BodyBuffer, MemoryBudget
from server.errors import HeadersTooLarge, Overloaded, TooLarge
from server.http.message import Request, RequestHead, without_upgrade
from server.protocols.body import BodyInfo

# Limit of request line and headers together; proxies allow 8 to 60 KiB.
HEAD_BYTES = 1 << 16


class ParserEvents(Protocol):
    """What a parser calls, in this order for each request."""

    def on_begin(self) -> None:
        """Note that a request has begun."""

    def on_headers(self, head: RequestHead) -> BodyInfo:
        """Return what the headers say about the body; raises what refuses the request."""

    def on_body(self, size: int) -> None:
        """Note that so many bytes of the body were received."""

    def on_request(self, request: Request, raw: bytes) -> None:
        """Take a complete request.

        Args:
          request: the request.
          raw: the bytes that it was parsed from, if they were received together from its first byte
            on; else empty.
        """

    def on_error(self, error: Exception) -> None:
        """Refuse the request that is being read; calls `RequestParser.stop`."""


class RequestParser:
    """Parses the requests of one connection.

    The public methods that begin with `on_` are callbacks of httptools.

    Args:
      events: the connection.
      memory: counts the bytes of bodies.

    Attributes:
      head: of the request whose body is being read, else None.
      begun: whether the parser is between the first and the last byte of a request.
      body: what has been received of the body.
    """

    def __init__(self, events: ParserEvents, memory: MemoryBudget) -> None:
        self._events = events
        self._llhttp = httptools.HttpRequestParser(self)
        self._raw = b""
        # Bytes received since the last one of a body: of a head, or of a body's chunk framing.
        self._framing_bytes = 0
        self._target = b""
        self._fields: list[tuple[str, bytes]] = []
        self._headers: dict[str, str] = {}
        self._duplicates: set[str] = set()
        self._stopped = False
        self.head: RequestHead | None = None
        self.begun = False
        self.body = BodyBuffer(memory)

    def feed(self, data: bytes, *, at_start: bool) -> None:
        """Parse received data.

        Args:
          data: what was received.
          at_start: whether it begins behind the end of the previous request.
        """
        self._raw = data if at_start else b""
        self._framing_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(MalformedRequest("request: expected one of HTTP 1, got something else"))
        else:
            if self._framing_bytes > HEAD_BYTES:
                self._refuse(_head_too_large())

    def stop(self) -> None:
        """Ignore everything that follows, and discard the body that is being read."""
        self._stopped = True
        self._raw = b""
        self.body.drop()

    def _feed(self, data: bytes) -> None:
        """Parse data, ignoring offers to upgrade to another protocol."""
        while data and not self._stopped:
            try:
                self._llhttp.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                method = self._llhttp.get_method()
                if method == b"CONNECT":
                    self._refuse(MalformedRequest("method: expected one of a server, got CONNECT"))
                    return
                # httptools ends a message with the head of such a request. So the head is parsed
                # again without the offer, then the data behind it.
                version = self._llhttp.get_http_version()
                head = without_upgrade(method, self._target, version, self._fields)
                self._llhttp = httptools.HttpRequestParser(self)
                data = head + data[upgrade.args[0] :]

    def _refuse(self, error: Exception) -> None:
        if not self._stopped:
            self._events.on_error(error)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._events.on_begin()
        self.begun = True
        self._target = b""
        self._fields = []
        self._headers = {}
        self._duplicates = set()
        self.head = None

    def on_url(self, part: bytes) -> None:
        """Append a part of the target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; trailers behind a chunked body are ignored."""
        if self.head is None:
            key = name.decode("latin-1").lower()
            self._fields.append((key, value))
            if key in self._headers:
                self._duplicates.add(key)
            else:
                # llhttp strips spaces only; RFC 9112 section 5.1 has tabs ignored as well.
                self._headers[key] = value.decode("latin-1").strip(" \t")

    def on_headers_complete(self) -> None:
        """Decide whether the body is read, before any of it is."""
        llhttp = self._llhttp
        if self._stopped or llhttp.should_upgrade():
            return
        self.head = RequestHead(
            llhttp.get_method().decode(),
            self._target,
            llhttp.get_http_version(),
            self._headers,
            self._duplicates,
        )
        if self._framing_bytes > HEAD_BYTES and self._head_size() > HEAD_BYTES:
            self._refuse(_head_too_large())
            return
        self._framing_bytes = 0
        try:
            info = self._events.on_headers(self.head)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            self._refuse(error)
        else:
            self.body.begin(info.limit)

    def on_body(self, part: bytes) -> None:
        """Append a part of the body, within its limits."""
        if not self._stopped:
            self._framing_bytes = 0
            self._events.on_body(len(part))
            try:
                self.body.add(part)
            except (TooLarge, Overloaded) as error:
                self._refuse(error)

    def on_message_complete(self) -> None:
        """Pass on the complete request."""
        head = self.head
        if self._stopped or head is None:
            return
        head.keep_alive = self._llhttp.should_keep_alive()
        request = Request(head, self.body.take(), self.body.detach())
        # An idle connection keeps nothing of what it has received.
        raw, self._raw = self._raw, b""
        self._framing_bytes = 0
        self.head = None
        self.begun = False
        self._events.on_request(request, raw)

    def _head_size(self) -> int:
        """Return the bytes of the head alone."""
        return len(self._target) + sum(len(name) + len(value) for name, value in self._fields)


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"headers: expected at most {HEAD_BYTES} bytes")
