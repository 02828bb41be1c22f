"""The listening socket and its connections."""

import asyncio
import contextlib
import errno
import logging
import socket
import time
from typing import Any

from server.http_connection import Answers, Connection
from server.http_message import Heads

log = logging.getLogger(__name__)

# Above what a load balancer opens; the kernel keeps some more waiting.
CONNECTIONS = 2048
# How often connections are looked at for what does not come.
LOOK_S = 1.0
# Connections that are taken in before the others have their turn.
_AT_ONCE = 64
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


class HttpServer:
    """Accepts connections until it is stopped.

    Args:
      answers: answers the requests.
      listener: a socket that listens; see `listen`.
      most: connections at once; the kernel keeps those beyond.
      look_s: how often they are looked at for what does not come.
    """

    def __init__(
        self,
        answers: Answers,
        listener: socket.socket,
        most: int = CONNECTIONS,
        look_s: float = LOOK_S,
    ) -> None:
        self._answers = answers
        self._listener = listener
        self._most = most
        self._look_s = look_s
        self._heads = Heads()
        self._beginning: set[asyncio.Task[Any]] = set()
        self.connections: set[Connection] = set()

    async def serve(self) -> None:
        """Accept connections; cancelled to end."""
        loop = asyncio.get_running_loop()
        looking = loop.create_task(self._look())
        try:
            with self._listener:
                while True:
                    await self._accept(loop)
        finally:
            looking.cancel()

    async def stop(self) -> None:
        """Close the connections as their answers are sent; all of them are closed then."""
        while self.connections:
            now = time.monotonic()
            for connection in list(self.connections):
                connection.leave()
                connection.look(now)
            await asyncio.sleep(0.01)

    async def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take in the connections that wait, several at a turn: a turn can be a batch long."""
        try:
            first, _ = await loop.sock_accept(self._listener)
            self._begin(loop, first)
            with contextlib.suppress(BlockingIOError):
                for _ in range(min(_AT_ONCE, self._most - len(self.connections)) - 1):
                    more, _ = self._listener.accept()
                    self._begin(loop, more)
        except OSError as error:
            if error.errno in _SHORTAGES:
                log.warning("no more connections for now: %s", error.strerror)
                await asyncio.sleep(self._look_s)
            return
        while len(self.connections) >= self._most:  # noqa: ASYNC110 (at the limit a look now and then will do)
            await asyncio.sleep(self._look_s)

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

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.look(now)
