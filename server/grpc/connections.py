"""The sockets of a port that another library has opened in this process."""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

# The files that are open in this process, on Linux; elsewhere nothing is found.
_FILES = Path("/proc/self/fd")
# HTTP/2's frame GOAWAY (RFC 9113, 6.8): no error, and calls of any number are answered that a client has
# opened before it reads this.
_GOAWAY = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")
# How often clients are looked at that have a connection to close.
_CHECK_S = 0.02


def announce_end(port: int) -> None:
    """Close a port of this process, and have clients open no more calls on the connections to it.

    Clients close a connection that has announced its end once their calls there are answered. For a
    process that ends next, whose answers have been sent: the library that opened the port does not
    know, and goes on. Where a client takes nothing the announcement is left out, as it could
    cut a frame that the library has sent a part of.
    """
    for number, found in _sockets(port):
        if _listens(found):
            os.close(number)
    for _, found in _sockets(port):
        with contextlib.suppress(OSError):  # its client has gone
            if _is_writable(found):
                found.send(_GOAWAY, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


async def end(port: int, grace_s: float) -> None:
    """Wait until clients have closed the connections to a port, and end those that are left.

    What was written to connections is still sent.

    Args:
      port: that of the connections.
      grace_s: the longest that clients are waited for.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            while any(_sockets(port)):  # noqa: ASYNC110 (they are not the loop's)
                await asyncio.sleep(_CHECK_S)
    for _, found in _sockets(port):
        with contextlib.suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def _sockets(port: int) -> Iterator[tuple[int, socket.socket]]:
    """Yield each socket of a port by its number, as another file of it, which is closed then."""
    for path in list(_FILES.iterdir()) if _FILES.is_dir() else ():
        number = int(path.name)
        with contextlib.suppress(OSError), _opened(number) as found:
            internet = found.family in (socket.AF_INET, socket.AF_INET6)
            if internet and found.getsockname()[1] == port:
                yield number, found


def _opened(number: int) -> socket.socket:
    """Return another file of the same socket.

    Raises:
      OSError: it is none, or closed meanwhile.
    """
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _listens(found: socket.socket) -> bool:
    return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_writable(found: socket.socket) -> bool:
    poll = select.poll()
    poll.register(found, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))
