"""The listening socket and its connections."""

import asyncio
import contextlib
import ctypes
import errno
import logging
import socket
import struct
import sys
import time
from typing import Any

from server.http.connection import Connection, RequestHandler
from server.http.message import HeadCache

log = logging.getLogger(__name__)

# Above what a load balancer opens; the kernel keeps some more waiting.
CONNECTIONS = 2048
# How often connections are looked at for what does not come.
TIMEOUT_CHECK_S = 1.0
_SO_ATTACH_FILTER = 26
# Connections that are taken in before the others have their turn.
_AT_ONCE = 64
_TURN_S = 0.01
# How long a server that stops waits for requests that are on their way. Less than the second after
# which a client tries again to connect, so that it is refused at once then.
GRACE_S = 0.5
# Running out of these passes, once connections end.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind a port.

    Args:
      host: address.
      port: 0 for any that is free.
      shared: with other processes of this user that say so too; the kernel gives each
        connection to one of them.

    Raises:
      OSError: it is taken, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server(
        (host, port), family=family, backlog=CONNECTIONS, reuse_port=shared
    )
    listener.setblocking(False)
    return listener


def turn_away(listener: socket.socket) -> None:
    """Have the kernel drop what asks for a connection, as far as it knows how to.

    A connection that came between the last `accept` and `close` would be reset, with the request
    on it. Who gets no answer asks again a second later, and is refused.
    """
    if sys.platform != "linux":
        return
    # In classic BPF: load the flags of the TCP header; if of SYN and ACK it has SYN alone, take
    # none of the packet, else all of it.
    program = b"".join(
        struct.pack("=HBBI", *line)
        for line in (
            (0x30, 0, 0, 13),
            (0x54, 0, 0, 0x12),
            (0x15, 0, 1, 0x02),
            (0x06, 0, 0, 0),
            (0x06, 0, 0, 0xFFFFFFFF),
        )
    )
    kept = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    with contextlib.suppress(OSError):  # it may be closed
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


class HttpServer:
    """Accepts connections until it is stopped.

    Args:
      answers: answers the requests.
      listener: a socket that listens; see `listen`.
      max_connections: connections at once; the kernel keeps those beyond.
      look_s: how often they are looked at for what does not come.
    """

    def __init__(
        self,
        answers: RequestHandler,
        listener: socket.socket,
        most: int = CONNECTIONS,
        look_s: float = TIMEOUT_CHECK_S,
    ) -> None:
        self._answers = answers
        self._listener = listener
        self._most = most
        self._look_s = look_s
        self._heads = HeadCache()
        self._beginning: set[asyncio.Task[Any]] = set()
        self.connections: set[Connection] = set()

    async def serve(self) -> None:
        """Accept connections until the listener is closed, or it is cancelled."""
        loop = asyncio.get_running_loop()
        looking = loop.create_task(self._check_timeouts())
        self._resume(loop)
        try:
            while self._listener.fileno() >= 0:  # noqa: ASYNC110 (whoever closes it waits for it)
                await asyncio.sleep(self._look_s)
        finally:
            looking.cancel()
            self._close(loop)

    async def finish(self, grace_s: float = GRACE_S) -> None:
        """Listen no more, and wait until whatever was asked is answered.

        Args:
          grace_s: for how long connections are kept on which nothing is asked. What is on its way
            is answered then, and not lost with them.
        """
        loop = asyncio.get_running_loop()
        turn_away(self._listener)
        until = time.monotonic() + grace_s
        over = False
        while not over or self._beginning or any(c.owing for c in self.connections):
            if not over and time.monotonic() >= until:
                over = True
                self._close(loop)
            self._look_at_all(leave=over)
            await asyncio.sleep(_TURN_S)

    async def stop(self) -> None:
        """Close the connections as their answers are sent; all of them are closed then."""
        await self.finish(0.0)
        while self.connections:
            self._look_at_all(leave=True)
            await asyncio.sleep(_TURN_S)

    def _look_at_all(self, *, leave: bool) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            if leave:
                connection.close_gracefully()
            connection.check_timeouts(now)

    def unfinished(self) -> int:
        """Return the number of connections on which an answer is to come, or on its way."""
        return sum(not connection.quiet for connection in self.connections)

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen no more; those who are connected are taken in, since to close would reset them."""
        if self._listener.fileno() >= 0:
            loop.remove_reader(self._listener)
            with contextlib.suppress(OSError):  # there are no more
                while True:
                    self._begin(loop, self._listener.accept()[0])
            self._listener.close()

    def _resume(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept when there is somebody, unless there are as many connections as there may be."""
        if self._listener.fileno() >= 0:
            loop.add_reader(self._listener, self._accept, loop)

    def _pause(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept nobody for a while."""
        loop.remove_reader(self._listener)
        loop.call_later(self._look_s, self._resume, loop)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take in the connections that wait, several at a turn: a turn can be a batch long."""
        room = self._most - len(self.connections) - len(self._beginning)
        try:
            for _ in range(min(_AT_ONCE, room)):
                self._begin(loop, self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _SHORTAGES:
                log.warning("no more connections for now: %s", error.strerror)
                self._pause(loop)
            return
        if room <= _AT_ONCE:
            self._pause(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        begun = loop.create_task(
            loop.connect_accepted_socket(
                lambda: Connection(self._answers, self.connections, self._heads), accepted
            )
        )
        self._beginning.add(begun)
        begun.add_done_callback(self._begun)

    def _begun(self, begun: "asyncio.Task[Any]") -> None:
        self._beginning.discard(begun)
        if not begun.cancelled() and isinstance(error := begun.exception(), OSError):
            log.debug("a connection was gone again: %s", error)

    async def _check_timeouts(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            self._look_at_all(leave=False)
