"""HTTP/2 connection of gRPC: an asyncio protocol from received bytes to calls, and back.

`ngh2`, which is libnghttp2, reads and writes frames, headers and windows, and limits what a client may do
with them. What answers that are ready at the same time have to send leaves in one write.
"""

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, override

import ngh2
from ngh2 import Setting

from server.batching.memory_budget import Received, Unread
from server.grpc.calls import RpcError
from server.grpc.http2_call import MAX_CHECKS, Call
from server.grpc.options import LINGER_S
from server.grpc.wire import HEADERS, OK, frame, trailers

if TYPE_CHECKING:
    from server.grpc.http2_server import Http2Server

# Calls of a connection at once; a client that has more waits for those to end.
CONCURRENT_STREAMS = 128
# Bytes that a client may send of a call, and of all, before they are taken.
STREAM_WINDOW = 1 << 18
CONNECTION_WINDOW = 1 << 20
# Bytes of a call's headers, with 32 more for each. Beyond them the connection ends.
HEADER_BYTES = 1 << 16
# Checks, one each second: without a byte, until the client is pinged; for its answer; and without a
# call, as long as gRPC's own clients keep a connection.
PING_CHECKS, PONG_CHECKS, IDLE_CHECKS = 60, 20, 1800
# How long calls still arrive at a connection that has announced its end.
NOTICE_S = 0.2
_WRITE_BYTES = 1 << 18
# Connections that began together do not end together.
_jitter = random.Random()  # noqa: S311 (no secret)
_CONFIGURATION = ngh2.Configuration(
    auto_window_update=False, max_inbound_header_list_size=HEADER_BYTES
)
_SETTINGS = {
    Setting.MAX_CONCURRENT_STREAMS: CONCURRENT_STREAMS,
    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    Setting.MAX_HEADER_LIST_SIZE: HEADER_BYTES,
}


class Connection(asyncio.Protocol):
    """A connection of a client. All methods run on the event loop.

    Args:
      server: makes its calls.

    Attributes:
      received: counts what was received of calls that are not answered.
      unread: counts the answers that its client does not take yet.
    """

    def __init__(self, server: "Http2Server") -> None:
        self.received = Received(server.memory)
        self.unread = Unread(server.memory)
        self._server = server
        self._h2 = ngh2.Connection(ngh2.Role.SERVER, _CONFIGURATION)
        self._loop = asyncio.get_running_loop()
        self._transport: Any
        self._calls: dict[int, Call] = {}
        # Calls that have ended before their client has sent all.
        self._early: list[Call] = []
        self._flushing = self._paused = self._noticed = False
        self._leaving = self._ending = False
        self._silent = self._idle = self._stalled = self._age = 0
        self._max_age_s = server.max_age_s * _jitter.uniform(0.9, 1.1)

    # asyncio.Protocol

    @override
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if not self._server.on_connected(self):
            transport.abort()
            return
        self._h2.initiate_connection(_SETTINGS)
        self._h2.set_local_window_size(CONNECTION_WINDOW)
        self._flush()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        for call in self._calls.values():
            call.drop()
        self._calls.clear()
        self.unread.remove(self.unread.size)
        self._server.on_disconnected(self)

    @override
    def data_received(self, data: bytes) -> None:
        self._silent = 0
        if self._ending:
            return
        self._flushing = True
        try:
            self._h2.receive_data(data)
        except ngh2.NGH2Error:  # the connection cannot go on, and libnghttp2 says no more
            self._ending = True
            self._transport.close()
            return
        self._take_events()
        self._flush()
        if not self._h2.want_read:
            self._end()

    @override
    def pause_writing(self) -> None:
        # It is read from on: calls are limited, and libnghttp2 limits what else is to be answered.
        self._paused = True

    @override
    def resume_writing(self) -> None:
        self._paused, self._stalled = False, 0
        self._flush()

    # What its calls do

    def write(self, call: Call, message: bytes) -> None:
        """Send a message; raises Overloaded where too many wait to be read."""
        self.unread.add(len(message))
        with contextlib.suppress(ngh2.StreamProtocolError):  # closed, which is still to be read
            if not call.answering:
                call.answering = True
                self._h2.send_response(call.id, HEADERS)
            self._h2.send_data(call.id, frame(message))
        self._flush_soon()

    def finish(self, call: Call, refused: RpcError | None) -> None:
        """Send the status of a call, OK without an error."""
        last = OK if refused is None else trailers(refused.status.grpc, refused.text, refused.known)
        with contextlib.suppress(ngh2.StreamProtocolError):
            if call.answering:
                self._h2.send_trailers(call.id, last)
            else:
                call.answering = True
                self._h2.send_response(call.id, HEADERS + last, end_stream=True)
        if not call.half_closed:
            self._early.append(call)
        self._flush_soon()

    def acknowledge(self, call: Call, size: int) -> None:
        """Let the client send as many bytes more."""
        with contextlib.suppress(ngh2.NGH2Error, ValueError):  # closed, and acknowledged by that
            self._h2.acknowledge_received_data(size, call.id)
        self._flush_soon()

    def unsent(self, call: Call) -> int:
        """Return the bytes of a call's answers that its client does not take yet."""
        with contextlib.suppress(ngh2.StreamProtocolError):  # closed, which is still to be read
            return self._h2.queued_body_size(call.id)
        return 0

    def reset(self, call: Call, code: int = ngh2.ErrorCode.CANCEL) -> None:
        """End a call, without a status if it has none."""
        with contextlib.suppress(ngh2.StreamProtocolError):
            self._h2.reset_stream(call.id, code)
        self._flush_soon()

    # What the server does

    def stop(self) -> None:
        """Refuse what has not been asked, answer what has been, and close."""
        for call in list(self._calls.values()):
            call.stop()
        self.close_gracefully()

    def close_gracefully(self) -> None:
        """Announce the end, and close after the calls."""
        if not self._noticed and not self._ending:
            self._noticed = True
            self._h2.send_shutdown_notice()
            self._loop.call_later(NOTICE_S, self._leave)
            self._flush_soon()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def check_timeouts(self) -> None:
        """End what makes no progress; has to be called each second."""
        self._silent += 1
        self._age += 1
        self._idle = 0 if self._calls else self._idle + 1
        self._stalled = self._stalled + 1 if self._paused else 0
        silent = self._silent - PING_CHECKS
        grown_old = self._max_age_s and self._age > self._max_age_s + self._server.max_grace_s
        if self._stalled > MAX_CHECKS or silent > PONG_CHECKS or grown_old:
            self.abort()
        if self._paused or self._ending or self._transport.is_closing():
            return
        if silent == 0:
            self._h2.ping()
        if self._idle > IDLE_CHECKS or (self._max_age_s and self._age > self._max_age_s):
            self.close_gracefully()
        for call in list(self._calls.values()):
            call.check_timeouts()
        self._flush_soon()

    # Internals

    def _take_events(self) -> None:
        for event in self._h2.events():
            if isinstance(event, ngh2.RequestReceived):
                self._open(event)
            elif call := self._calls.get(getattr(event, "stream_id", 0)):
                if isinstance(event, ngh2.DataReceived):
                    call.on_data(event.data, end=event.end_stream)
                elif isinstance(event, ngh2.TrailersReceived):
                    call.on_data(b"", end=True)
                elif isinstance(event, ngh2.StreamClosed):
                    del self._calls[call.id]
                    call.drop()

    def _open(self, event: ngh2.RequestReceived) -> None:
        fields = dict(event.headers)
        made = self._server.open(self, event.stream_id, fields)
        if not isinstance(made, Call):
            with contextlib.suppress(ngh2.StreamProtocolError):
                self._h2.send_response(event.stream_id, made, end_stream=True)
            return
        self._calls[event.stream_id] = made
        made.begin(fields)
        if event.end_stream:
            made.on_data(b"", end=True)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what is to be sent, as long as the client reads."""
        if self._ending:
            return
        self._flushing = True
        h2, transport = self._h2, self._transport
        while not self._paused and (data := h2.data_to_send(_WRITE_BYTES)):
            transport.write(data)
            self._take_events()
        self._flushing = False
        for call in [each for each in self._early if not (self._paused or self.unsent(each))]:
            self._early.remove(call)
            self.reset(call, ngh2.ErrorCode.NO_ERROR)  # its client is to send no more of it
        unread = self.unread
        if unread.size:
            unsent = h2.queued_body_size() + transport.get_write_buffer_size()
            if unsent < unread.size:
                unread.remove(unread.size - unsent)
        if self._leaving and not self._calls:
            self._end()

    def _leave(self) -> None:
        """Take no more calls."""
        if not self._leaving and not self._ending:
            self._leaving = True
            self._h2.send_goaway()
            self._flush()

    def _end(self) -> None:
        """Send the end of the stream, and let the client read it before the socket is closed."""
        if not self._ending:
            self._ending = True
            with contextlib.suppress(OSError, RuntimeError):  # it was reset
                self._transport.write_eof()
            self._loop.call_later(LINGER_S, self._transport.abort)
