"""Whether the bundle's files still are what was checked, for as long as a server uses them.

Params are used where the file is mapped, on a CPU. Whoever writes to the file changes answers, and
whoever cuts it off has the process ended by SIGBUS. Each second is looked at whether somebody has.
"""

import asyncio
import ctypes
import logging
import signal
import threading
from collections.abc import Awaitable, Callable

from runtime.bundle import Bundle
from runtime.errors import BundleError, IntegrityError

log = logging.getLogger(__name__)

PERIOD_S = 1.0


async def changed(
    bundle: Bundle, pause: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> BundleError:
    """Return what has become of a file in use, once something has.

    A bundle that was replaced, by renaming or after it was deleted, is no such thing: its files are
    gone for others alone.

    Args:
      bundle: loaded.
      pause: waits so many seconds.
    """
    told = False
    while True:
        try:
            # On another thread: a file system of the network may take its time.
            await asyncio.to_thread(bundle.expect_unchanged)
            replaced = "" if told else await asyncio.to_thread(bundle.replaced)
        except BundleError as error:
            return error
        if replaced:
            told = True
            log.info("%s: was replaced; the bundle that was loaded is served on", replaced)
        await pause(PERIOD_S)


class BusErrors:
    """Has a SIGBUS told as an error of the bundle: a page of a mapped file could not be had.

    Python's own handlers run later, on the main thread: the faulting access would be tried again
    for ever. This one is called by the C library where it happened, and never returns; XLA has let
    go of Python's lock there.

    Args:
      written: raises BundleError if a file in use was written to; it reads none.
      tell: is given why the process ends.
      die: ends it, at once.
    """

    def __init__(
        self,
        written: Callable[[], object],
        tell: Callable[[BundleError], object],
        die: Callable[[], object],
    ) -> None:
        self._written = written
        self._tell = tell
        self._die = die
        self._first = threading.Lock()
        # The C library knows its address only: it has to stay.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._handle)

    def install(self) -> None:
        """Have it called from now on, for as long as this object lives."""
        library = ctypes.CDLL(None)
        library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        library.signal(signal.SIGBUS, ctypes.cast(self._handler, ctypes.c_void_p))

    def _handle(self, _: int) -> None:
        if not self._first.acquire(blocking=False):
            threading.Event().wait()  # another thread is telling it
        try:
            self._tell(self._error())
        finally:
            self._die()

    def _error(self) -> BundleError:
        try:
            self._written()
        except BundleError as error:
            return error
        return IntegrityError(
            "bundle: expected files that can be read, got SIGBUS; is a disk failing?"
        )
