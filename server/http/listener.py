"""The HTTP server: the listening socket, accepting connections, and graceful shutdown."""

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

from server.http.connection import Connection
from server.http.message import HeadCache
from server.http.pipeline import RequestHandler

log = logging.getLogger(__name__)

# More than a load balancer opens; the kernel queues some more.
CONNECTIONS = 2048
# Interval of the timeout checks.
TIMEOUT_CHECK_S = 1.0
_SO_ATTACH_FILTER = 26
# Connections accepted in one turn of the event loop.
_ACCEPTS_PER_TURN = 64
_POLL_S = 0.01
# How long a server that stops waits for requests in transit. Less than the second after which a
# client retries to connect, so that the retry is refused at once.
GRACE_S = 0.5
# Temporary: resources are released as connections end.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a listening socket.

    Args:
      host: address.
      port: 0 for any free port.
      shared: with other processes of this user that pass it too; the kernel distributes the
        connections among them.

    Raises:
      OSError: the port is taken, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server(
        (host, port), family=family, backlog=CONNECTIONS, reuse_port=shared
    )
    listener.setblocking(False)
    return listener


def drop_new_connections(listener: socket.socket) -> None:
    """Have the kernel drop the first packet of new connections, on Linux.

    A connection made between the last `accept` and `close` would be reset, with the request on it.
    A client without a reply retries a second later, and is refused then.
    """
    if sys.platform != "linux":
        return
    # Classic BPF: load the flags of the TCP header; if of SYN and ACK only SYN is set, keep nothing of
    # the packet, else all of it.
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
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    with contextlib.suppress(OSError):  # it may be closed already
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


class HttpServer:
    """Accepts connections until it is stopped.

    Args:
      handler: answers the requests.
      listener: a listening socket; see `listen`.
      max_connections: limit of open connections; the kernel queues others.
      check_s: interval of the timeout checks.
    """

    def __init__(
        self,
        handler: RequestHandler,
        listener: socket.socket,
        max_connections: int = CONNECTIONS,
        check_s: float = TIMEOUT_CHECK_S,
    ) -> None:
        self._handler = handler
        self._listener = listener
        self._max_connections = max_connections
        self._check_s = check_s
        self._heads = HeadCache()
        self._accepted: set[asyncio.Task[Any]] = set()
        self.connections: set[Connection] = set()

    async def serve(self) -> None:
        """Accept connections until the listener is closed, or it is cancelled."""
        loop = asyncio.get_running_loop()
        checks = loop.create_task(self._check_timeouts())
        self._resume(loop)
        try:
            while self._listener.fileno() >= 0:  # noqa: ASYNC110 (its closing has no event)
                await asyncio.sleep(self._check_s)
        finally:
            checks.cancel()
            self._close(loop)

    async def finish(self, grace_s: float = GRACE_S) -> None:
        """Stop listening, and wait until every request is answered.

        Args:
          grace_s: how long idle connections are kept, so that requests in transit are answered.
        """
        loop = asyncio.get_running_loop()
        drop_new_connections(self._listener)
        deadline = time.monotonic() + grace_s
        closed = False
        while not closed or self._accepted or any(c.has_requests for c in self.connections):
            if not closed and time.monotonic() >= deadline:
                closed = True
                self._close(loop)
            self._check_all(close=closed)
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Close all connections, each after its responses."""
        await self.finish(0.0)
        while self.connections:
            self._check_all(close=True)
            await asyncio.sleep(_POLL_S)

    def _check_all(self, *, close: bool) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            if close:
                connection.close_gracefully()
            connection.check_timeouts(now)

    def unfinished(self) -> int:
        """Return the number of connections with a response to be made or sent."""
        return sum(not connection.quiet for connection in self.connections)

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop listening; accept the connections in the kernel's queue, which closing would reset."""
        if self._listener.fileno() >= 0:
            loop.remove_reader(self._listener)
            with contextlib.suppress(OSError):  # the queue is empty
                while True:
                    self._connect(loop, self._listener.accept()[0])
            self._listener.close()

    def _resume(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept connections, until the limit is reached."""
        if self._listener.fileno() >= 0:
            loop.add_reader(self._listener, self._accept, loop)

    def _pause(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept no connections for a while."""
        loop.remove_reader(self._listener)
        loop.call_later(self._check_s, self._resume, loop)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept waiting connections, several in a turn: a turn can take as long as a batch."""
        free = self._max_connections - len(self.connections) - len(self._accepted)
        try:
            for _ in range(min(_ACCEPTS_PER_TURN, free)):
                self._connect(loop, self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _SHORTAGES:
                log.warning("no more connections for now: %s", error.strerror)
                self._pause(loop)
            return
        if free <= _ACCEPTS_PER_TURN:
            self._pause(loop)

    def _connect(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        task = loop.create_task(
            loop.connect_accepted_socket(
                lambda: Connection(self._handler, self.connections, self._heads), accepted
            )
        )
        self._accepted.add(task)
        task.add_done_callback(self._on_connected)

    def _on_connected(self, task: "asyncio.Task[Any]") -> None:
        self._accepted.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), OSError):
            log.debug("a connection was gone again: %s", error)

    async def _check_timeouts(self) -> None:
        while True:
            await asyncio.sleep(self._check_s)
            self._check_all(close=False)
