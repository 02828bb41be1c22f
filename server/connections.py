"""The connections of a port, which another library has opened in this process."""

import contextlib
import os
import socket
from pathlib import Path

# The files that are open in this process, on Linux; elsewhere nothing is found.
_FILES = Path("/proc/self/fd")


def shut(port: int) -> None:
    """End the connections that clients have to a port of this process.

    What was written to them is still sent. The files stay open: they are not ours to close, and
    whoever opened them reads that they have ended.
    """
    for path in list(_FILES.iterdir()) if _FILES.is_dir() else ():
        with contextlib.suppress(OSError), _opened(int(path.name)) as found:
            internet = found.family in (socket.AF_INET, socket.AF_INET6)
            if internet and found.getsockname()[1] == port and not _listens(found):
                found.shutdown(socket.SHUT_RDWR)


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
