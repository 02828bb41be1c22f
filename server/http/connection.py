"""HTTP/1.1 connection: an asyncio protocol from received bytes to responses, in order.

`parser` turns bytes into requests, `pipeline` has them answered one at a time, `flow_control`
has the timeouts; how a connection ends is decided here.
"""

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Any, override

from runtime.errors import MalformedRequest
from server.errors import (
    BodyTimeout,
    Draining,
    HeadTimeout,
    IncompleteBody,
    Overloaded,
    TooLarge,
)
from server.http.flow_control import FlowControl, Phase, ReadTimeout
from server.http.message import HeadCache, Request, RequestHead, serialize
from server.http.parser import RequestParser
from server.http.pipeline import Pipeline, RequestHandler
from server.protocols.body import BodyInfo
from server.protocols.response import Response

# Of <netinet/tcp.h>: the state of a connection that was reset.
_TCP_CLOSE = 7


class Connection(asyncio.Protocol):
    """A connection of a client. All methods run on the event loop.

    Args:
      handler: answers its requests.
      connections: the open connections; it adds and removes itself.
      heads: heads that were parsed before, on any connection.
    """

    def __init__(
        self, handler: RequestHandler, connections: "set[Connection]", heads: HeadCache
    ) -> None:
        self._handler = handler
        self._connections = connections
        self._heads = heads
        self._parser = RequestParser(self, handler.memory)
        self._timeout = ReadTimeout()
        self._transport: Any
        self._flow: FlowControl
        self._pipeline: Pipeline
        self._half_closed = False

    # asyncio.Protocol

    @override
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._flow = FlowControl(transport)
        self._pipeline = Pipeline(self._handler, self._flow, self._write)
        self._connections.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._parser.stop()
        self._pipeline.cancel()

    @override
    def eof_received(self) -> bool:
        """Answer what was received from a client that sends no more.

        The client may have disconnected, which looks the same until it resets the connection; see
        `check_timeouts`.

        Returns:
          Whether the connection stays open, for responses that are still to be sent.
        """
        self._half_closed = True
        self._pipeline.deprioritize()
        if self._timeout.phase is Phase.BODY:
            self._refuse(IncompleteBody("body: expected all of it, got less"))
        elif not self._between_requests and self._timeout.phase is Phase.HEAD:
            self._refuse(MalformedRequest("head: expected all of it, got less"))
        return self.has_requests

    @override
    def pause_writing(self) -> None:
        self._flow.pause()

    @override
    def resume_writing(self) -> None:
        self._flow.resume()
        self._pipeline.resume()

    @override
    def data_received(self, data: bytes) -> None:
        phase = self._timeout.phase
        if phase is Phase.IDLE:
            request = self._heads.get(data)
            if request is not None:
                self._add(request)
                return
            self._timeout.enter(Phase.HEAD)
        elif phase is Phase.LINGER:
            return
        self._parser.feed(data, at_start=phase is Phase.IDLE)

    # Parser events

    def on_begin(self) -> None:
        """Start the timeout of a head that follows another request and may be incomplete."""
        if self._timeout.phase is Phase.IDLE:
            self._timeout.enter(Phase.HEAD)

    def on_headers(self, head: RequestHead) -> BodyInfo:
        """Return what the headers say about the body; raises what refuses the request."""
        self._timeout.enter(Phase.BODY)
        head.body_info = info = self._handler.on_headers(head)
        if head.expects_continue and self._pipeline.idle:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return info

    def on_body(self, size: int) -> None:
        """Extend the timeout of a body that makes progress."""
        self._timeout.add_progress(size)

    def on_request(self, request: Request, raw: bytes) -> None:
        """Have a complete request answered."""
        self._timeout.enter(Phase.IDLE)
        self._heads.put(raw, request)
        self._add(request)
        if not request.head.keep_alive and self._timeout.phase is Phase.IDLE:
            self._stop_reading()  # a client must not send more after `connection: close`

    def on_error(self, error: Exception) -> None:
        """Refuse the request that is being read."""
        self._refuse(error)

    # The listener's view

    @property
    def idle(self) -> bool:
        """Whether no request has begun or is being answered."""
        return self._between_requests and self.quiet

    @property
    def quiet(self) -> bool:
        """Whether no response is to be made or sent."""
        return self._pipeline.idle and self._flow.paused_since is None

    @property
    def has_requests(self) -> bool:
        """Whether there are requests without a response."""
        return not self._pipeline.idle

    @property
    def reading(self) -> bool:
        """Whether received data is parsed, and not discarded."""
        return self._timeout.phase is not Phase.LINGER

    def check_timeouts(self, now: float) -> None:
        """Close the connection if a timeout has expired or the client has disconnected.

        Args:
          now: monotonic time, in seconds.
        """
        if (self._half_closed and self._was_reset()) or self._flow.stalled(now):
            self._transport.abort()
            return
        phase = self._timeout.phase
        reads = phase in (Phase.HEAD, Phase.BODY)
        if not self._timeout.expired(now) or not (reads or self.quiet):
            return
        if phase is Phase.LINGER:
            self._transport.abort()
        elif phase is Phase.BODY:
            self._refuse(BodyTimeout("body: expected all of it sooner"))
        elif not self._between_requests:
            self._refuse(HeadTimeout("head: expected all of it sooner"))
        elif self.quiet:
            self._close()

    def close_gracefully(self) -> None:
        """Close the connection after its responses; refuse a request that is incomplete."""
        if not self.reading:
            return
        if not self._between_requests:
            self._refuse(Draining("the server is stopping"))
        elif self.quiet and not self._unread():
            self._close()

    # Internals

    @property
    def _between_requests(self) -> bool:
        """Whether no request has begun to arrive; empty lines do not begin one."""
        phase = self._timeout.phase
        return phase is Phase.IDLE or (phase is Phase.HEAD and not self._parser.begun)

    def _add(self, request: Request) -> None:
        try:
            self._pipeline.add(request)
        except (TooLarge, Overloaded) as error:
            self._refuse(error, request.head)

    def _refuse(self, error: Exception, head: RequestHead | None = None) -> None:
        """Send an error response after those to earlier requests, and read no more."""
        if self.reading:
            head = head or self._parser.head
            self._stop_reading()
            self._pipeline.add_error(self._handler.refuse(head, error))

    def _stop_reading(self) -> None:
        self._timeout.enter(Phase.LINGER)
        self._parser.stop()

    def _write(self, response: Response, request: Request | None) -> None:
        """Send a response; without a request it is the last one."""
        if self._transport.is_closing():
            return
        if self._timeout.phase is Phase.IDLE and self._handler.closing():
            self._stop_reading()  # complete requests are answered, and no others are read
        head = None if request is None else request.head
        close = head is None or not head.keep_alive
        close = close or (not self._pipeline.waiting and (self._half_closed or not self.reading))
        # Clients of HTTP 1.0 expect the connection to end without this header.
        keep_alive = head is not None and head.version == "1.0"
        connection = "close" if close else "keep-alive" if keep_alive else ""
        head_only = head is not None and head.method == "HEAD"
        self._transport.write(serialize(response, head_only=head_only, connection=connection))
        if close:
            self._pipeline.clear()
            self._close()

    def _close(self) -> None:
        """Send the end of the stream, and discard what is still received for a while.

        Closing the socket at once would reset the connection while the client is still sending,
        and the client would lose the responses that it has not read.
        """
        if self._half_closed:
            self._transport.close()
        else:
            try:
                self._transport.write_eof()
            except OSError:  # it was reset, which the loop has not read yet
                self._transport.abort()
            self._stop_reading()

    def _unread(self) -> int:
        """Return how many received bytes the event loop has not read from the socket yet."""
        size = fcntl.ioctl(self._socket().fileno(), termios.FIONREAD, bytes(4))
        return int.from_bytes(size, sys.byteorder)

    def _was_reset(self) -> bool:
        """Whether the client of a half-closed connection has reset it; asyncio does not report it."""
        if not hasattr(socket, "TCP_INFO"):
            return False
        info: bytes = self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0] == _TCP_CLOSE

    def _socket(self) -> Any:
        return self._transport.get_extra_info("socket")
