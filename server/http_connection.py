"""One connection: bytes to requests, answers to bytes, in order.

httptools reads HTTP/1 (it is llhttp, which reads strictly); what it has no say in is here:
the order of pipelined requests, sizes, times, and how a connection ends.
"""

import asyncio
import collections
import enum
import fcntl
import socket
import sys
import termios
import time
from collections.abc import Callable
from typing import Any, Protocol, override

import httptools

from server.body import BODY_S, PROGRESS_BYTES, Announced
from server.errors import (
    BodyTimeout,
    Draining,
    HeadersTooLarge,
    HeadTimeout,
    IncompleteBody,
    MalformedRequest,
    Overloaded,
    TooLarge,
)
from server.held import UNCOUNTED, Held, Incoming
from server.http_message import Head, Heads, Message, without_offer, write
from server.reply import Reply

# The request line and headers together; proxies allow 8 to 60 KiB.
HEAD_BYTES = 1 << 16
# Requests that wait behind the one that is being answered, or behind answers that the client
# does not read. Clients that pipeline at all send a few.
PIPELINED = 64
# Longer than the idle time of the load balancers in use (Google's: 600 s), so that none
# of them sends a request into a connection that closes.
IDLE_S = 620.0
HEAD_S = 30.0
# For so many more bytes of an answer as a body has to have in its time.
WRITE_S = 60.0
# For how long what still comes is thrown away behind the last answer, so that it can be read.
LINGER_S = 2.0
# Of <netinet/tcp.h>: the state of a connection that was reset.
_TCP_CLOSE = 7


class Phase(enum.Enum):
    """What a connection waits for, and for how many seconds at most."""

    IDLE = IDLE_S
    HEAD = HEAD_S
    BODY = BODY_S
    LINGER = LINGER_S


# While httptools is in the middle of a request.
_PARSED = (Phase.HEAD, Phase.BODY)


class Underway(Protocol):
    """A request that is being answered, as its connection sees it."""

    def withdraw(self) -> object:
        """Give it up: its client has gone."""

    def deprioritize(self) -> object:
        """Answer it only while there is room: its client may have gone."""


class Answers(Protocol):
    """Whoever answers the requests of connections.

    Attributes:
      held: counts the bytes of bodies.
    """

    held: Held

    def admit(self, head: Head) -> Announced:
        """Give what the head says of the body; raises what refuses the request."""

    def answer(self, message: Message, done: Callable[[Reply], object]) -> Underway | None:
        """Answer a request; what is returned hears of its client's going before it is done."""

    def refused(self, head: Head | None, error: Exception) -> Reply:
        """Write the refusal of a request that was not read."""

    def closing(self) -> bool:
        """Say whether connections are to end with their answers."""


class Connection(asyncio.Protocol):
    """A connection. All on the event loop.

    Args:
      answers: answers its requests.
      connections: of which it is one while it is open.
      heads: that were read before, on any connection.
    """

    def __init__(self, answers: Answers, connections: "set[Connection]", heads: Heads) -> None:
        self._answers = answers
        self._connections = connections
        self._heads = heads
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._client = ""
        self._phase = Phase.IDLE
        self._since = time.monotonic()
        # That came without any of a body: of a head, or of what frames a body in chunks.
        self._bare_bytes = 0
        self._whole = b""
        self._target = b""
        self._fields: list[tuple[str, bytes]] = []
        self._headers: dict[str, str] = {}
        self._doubled: set[str] = set()
        self._head: Head | None = None
        self._body = Incoming(answers.held)
        self._waiting: collections.deque[Message | Reply] = collections.deque()
        self._answering: Message | None = None
        self._underway: Underway | None = None
        # Whether httptools is behind the first byte of a request, and not behind its last.
        self._begun = False
        self._half_closed = False
        # Of a body, since the connection was last given time for more.
        self._progress = 0
        self._blocked_since: float | None = None
        self._unsent = 0

    # Of asyncio.

    @override
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if peer else ""
        self._connections.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._body.drop()
        self._drop_waiting()
        if self._answering is not None and self._underway is not None:
            self._underway.withdraw()
            self._release(self._answering)

    @override
    def eof_received(self) -> bool:
        """Answer what a client has asked that sends no more.

        It may have gone, which looks the same until it resets the connection; see `look`.

        Returns:
          Whether the connection stays open, for answers that are to come.
        """
        self._half_closed = True
        if self._underway is not None:
            self._underway.deprioritize()
        if self._phase is Phase.BODY:
            self._refuse(IncompleteBody("body: expected all of it, got less"))
        elif not self._between and self._phase is Phase.HEAD:
            self._refuse(MalformedRequest("head: expected all of it, got less"))
        return self.owing

    @override
    def pause_writing(self) -> None:
        self._blocked_since = time.monotonic()
        self._unsent = self._transport.get_write_buffer_size()

    @override
    def resume_writing(self) -> None:
        self._blocked_since = None
        self._next()

    @override
    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.LINGER:
            return
        if self._phase is Phase.IDLE:
            known = self._heads.recall(data, self._client)
            if known is not None:
                self._take(known)
                return
            self._whole = data
            self._enter(Phase.HEAD)
        else:
            self._whole = b""
        self._bare_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(MalformedRequest("request: expected one of HTTP 1, got something else"))
        else:
            if self._phase in _PARSED and self._bare_bytes > HEAD_BYTES:
                self._refuse(_too_much_head())

    def _parse(self, data: bytes) -> None:
        """Have httptools read what came, and decline what a client offers to speak instead."""
        while data and self._phase is not Phase.LINGER:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                method = self._parser.get_method()
                if method == b"CONNECT":
                    self._refuse(MalformedRequest("method: expected one of a server, got CONNECT"))
                    return
                # httptools ends a message with the head of such a request. So its head is read
                # again, without the offer, and then what came behind it.
                version = self._parser.get_http_version()
                head = without_offer(method, self._target, version, self._fields)
                self._parser = httptools.HttpRequestParser(self)
                data = head + data[upgrade.args[0] :]

    # Of httptools, in this order for each request.

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._phase is Phase.IDLE:  # it came behind another one, and may not be all there
            self._enter(Phase.HEAD)
        self._begun = True
        self._target = b""
        self._fields = []
        self._headers = {}
        self._doubled = set()
        self._head = None

    def on_url(self, part: bytes) -> None:
        """Take a part of the target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or what follows a body in chunks, which nobody asked for."""
        if self._head is None:
            key = name.decode("latin-1").lower()
            self._fields.append((key, value))
            if key in self._headers:
                self._doubled.add(key)
            else:
                # Of the white space that RFC 9112 section 5.1 has ignored, llhttp leaves tabs.
                self._headers[key] = value.decode("latin-1").strip(" \t")

    def on_headers_complete(self) -> None:
        """Decide whether the body is read, before any of it is."""
        parser = self._parser
        if self._phase is Phase.LINGER or parser.should_upgrade():
            return
        self._head = head = Head(
            parser.get_method().decode(),
            self._target,
            parser.get_http_version(),
            self._headers,
            self._doubled,
        )
        self._enter(Phase.BODY)
        if self._bare_bytes > HEAD_BYTES and self._head_size() > HEAD_BYTES:
            self._refuse(_too_much_head())
            return
        self._bare_bytes = 0
        try:
            head.announced = announced = self._answers.admit(head)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            self._refuse(error)
            return
        self._body.begin(announced.limit)
        if head.expects_continue and self._answering is None and not self._waiting:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        """Take a part of the body; no more than there may be."""
        if self._phase is not Phase.LINGER:
            self._bare_bytes = 0
            self._progress += len(part)
            if self._progress >= PROGRESS_BYTES:
                self._enter(Phase.BODY)
            try:
                self._body.add(part)
            except (TooLarge, Overloaded) as error:
                self._refuse(error)

    def on_message_complete(self) -> None:
        """Put the request behind those before it."""
        head = self._head
        if self._phase is Phase.LINGER or head is None:
            return
        keep_alive = self._parser.should_keep_alive()
        message = Message(head, self._client, self._body.whole(), keep_alive)
        self._bare_bytes = 0
        self._head = None
        self._begun = False
        self._enter(Phase.IDLE)
        self._heads.remember(self._whole, message)
        self._whole = b""  # an idle connection holds nothing of what it has sent
        self._take(message)
        if not keep_alive and self._phase is Phase.IDLE:
            self._enter(Phase.LINGER)  # nothing behind the last request is one

    # Of our own.

    def _take(self, message: Message) -> None:
        try:
            self._hold(message)
        except (TooLarge, Overloaded) as error:
            self._head = message.head
            self._refuse(error)
        else:
            self._waiting.append(message)
            self._next()

    def _hold(self, message: Message) -> None:
        """Count a request that came whole, unless it is small and the only one."""
        if len(self._waiting) == PIPELINED:
            raise TooLarge(f"requests: expected at most {PIPELINED} ahead of their answers")
        size = len(message.body)
        if size > UNCOUNTED or self._waiting or self._answering is not None:
            self._body.count(size)
            message.counted = self._body.hand_over()

    def _release(self, message: Message) -> None:
        """Count the body of a request no more: it is answered, or given up."""
        if message.counted:
            self._answers.held.give(message.counted)
            message.counted = 0

    def _drop_waiting(self) -> None:
        for item in self._waiting:
            if isinstance(item, Message):
                self._release(item)
        self._waiting.clear()

    @property
    def idle(self) -> bool:
        """Say whether nothing is asked of it."""
        return self._between and self.quiet

    @property
    def _between(self) -> bool:
        """Whether no request has begun to come; lines that are empty begin none."""
        return self._phase is Phase.IDLE or (self._phase is Phase.HEAD and not self._begun)

    @property
    def quiet(self) -> bool:
        """Say whether no answer is to come, nor on its way."""
        return self._answering is None and not self._waiting and self._blocked_since is None

    @property
    def owing(self) -> bool:
        """Whether something was asked that is not answered."""
        return self._answering is not None or bool(self._waiting)

    @property
    def reading(self) -> bool:
        """Say whether what comes is read, and not thrown away."""
        return self._phase is not Phase.LINGER

    def look(self, now: float) -> None:
        """End the connection if what it waits for does not come in time, or its client has gone."""
        if self._half_closed and self._was_reset():
            self._transport.abort()
            return
        if self._blocked_since is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent <= self._unsent - PROGRESS_BYTES:
                self._blocked_since, self._unsent = now, unsent
            elif now - self._blocked_since > WRITE_S:
                self._transport.abort()
                return
        if now - self._since <= self._phase.value or (
            self._phase not in _PARSED and not self.quiet
        ):
            return
        if self._phase is Phase.LINGER:
            self._transport.abort()
        elif self._phase is Phase.BODY:
            self._refuse(BodyTimeout("body: expected all of it sooner"))
        elif not self._between:
            self._refuse(HeadTimeout("head: expected all of it sooner"))
        elif self.quiet:
            self._part()

    def leave(self) -> None:
        """End, unless there is an answer to come; a request that is not all there is refused."""
        if not self.reading:
            return
        if not self._between:
            self._refuse(Draining("the server is stopping"))
        elif self.quiet and not self._unread():
            self._part()

    def _unread(self) -> int:
        """Return how many bytes have come that the loop has not read yet."""
        found = fcntl.ioctl(self._socket().fileno(), termios.FIONREAD, bytes(4))
        return int.from_bytes(found, sys.byteorder)

    def _was_reset(self) -> bool:
        """Whether a client that sends no more has gone; a loop that does not read is not told."""
        if not hasattr(socket, "TCP_INFO"):
            return False
        info: bytes = self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0] == _TCP_CLOSE

    def _socket(self) -> Any:
        return self._transport.get_extra_info("socket")

    def _head_size(self) -> int:
        """Give the bytes of the head, whatever came with it."""
        return len(self._target) + sum(len(name) + len(value) for name, value in self._fields)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since = time.monotonic()
        self._progress = 0

    def _next(self) -> None:
        """Answer the next request, if none is being answered and the client reads."""
        if self._answering is not None or self._blocked_since is not None or not self._waiting:
            return
        item = self._waiting.popleft()
        if isinstance(item, Reply):
            self._send(item, None)
        else:
            self._answering = item
            underway = self._answers.answer(item, self._answered)
            if self._answering is item:
                self._underway = underway
                if self._half_closed and underway is not None:
                    underway.deprioritize()

    def _answered(self, made: Reply) -> None:
        message, self._answering, self._underway = self._answering, None, None
        if message is not None:
            self._release(message)
        if not self._transport.is_closing():
            self._send(made, message)
            self._next()

    def _send(self, made: Reply, message: Message | None) -> None:
        """Write an answer; with None it is the last one."""
        head_only = message is not None and message.head.method == "HEAD"
        if self._answers.closing() and self._phase is Phase.IDLE:
            self._enter(Phase.LINGER)  # what was read is answered, and nothing more is read
        close = message is None or not message.keep_alive
        close = close or (not self._waiting and (self._half_closed or not self.reading))
        # Clients of HTTP 1.0 take a connection for one that ends, unless they are told.
        old = message is not None and message.head.version == "1.0"
        connection = "close" if close else "keep-alive" if old else ""
        self._transport.write(write(made, head_only=head_only, connection=connection))
        if close:
            self._drop_waiting()
            self._part()

    def _part(self) -> None:
        """Send no more, and throw away what still comes, for a while.

        To close at once would reset the connection while the client is still sending, and what it
        has not read of the answers would be lost to it.
        """
        if self._half_closed:
            self._transport.close()
        else:
            try:
                self._transport.write_eof()
            except OSError:  # it was reset, which the loop has not read yet
                self._transport.abort()
            self._enter(Phase.LINGER)

    def _refuse(self, error: Exception) -> None:
        """Answer what was not read behind all that was, and read no more; that is answered once."""
        if self._phase is Phase.LINGER:
            return
        self._enter(Phase.LINGER)
        self._body.drop()
        self._waiting.append(self._answers.refused(self._head, error))
        self._next()


def _too_much_head() -> HeadersTooLarge:
    return HeadersTooLarge(f"headers: expected at most {HEAD_BYTES} bytes")
