"""The sockets of a port that another library has opened in this process."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

# The files that are open in this process, on Linux; elsewhere nothing is found.
_FILES = Path("/proc/self/fd")


def leave(port: int) -> None:
    """Close a port of this process, and end the connections to it, as its end would.

    What was written to connections is still sent. For a process that ends next: the library that opened
    the port does not know that it is closed.
    """
    for number, found in _sockets(port):
        if _listens(found):
            os.close(number)
    for _, found in _sockets(port):
        with contextlib.suppress(OSError):  # its client has gone
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
