"""Watches the files of the bundle that is served: whether they were written to or truncated.

On a CPU params are used from the mapped file itself. Writing to that file changes answers, and
truncating it ends the process by SIGBUS. So the files are checked each second.
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
    """Wait until a file in use has changed; return the error that describes it.

    A bundle that was replaced, by renaming or after it was deleted, does not count: this process
    still has its files open. That is logged once.

    Args:
      bundle: loaded.
      pause: waits so many seconds.
    """
    logged = False
    while True:
        try:
            # On another thread: a network file system may be slow.
            await asyncio.to_thread(bundle.expect_unchanged)
            replaced = "" if logged else await asyncio.to_thread(bundle.replaced)
        except BundleError as error:
            return error
        if replaced:
            logged = True
            log.info("%s: was replaced; the bundle that was loaded is served on", replaced)
        await pause(PERIOD_S)


class BusErrors:
    """Reports a SIGBUS as an error of the bundle: a page of a mapped file could not be read.

    Python's own handlers run later, on the main thread: the faulting access would be retried
    for ever. This one is called by the C library on the faulting thread, and never returns; XLA
    has released Python's lock there.

    Args:
      expect_unwritten: raises BundleError if a file in use was written to; it reads none.
      report: called with the reason why the process ends.
      exit_process: ends the process, at once.
    """

    def __init__(
        self,
        expect_unwritten: Callable[[], object],
        report: Callable[[BundleError], object],
        exit_process: Callable[[], object],
    ) -> None:
        self._expect_unwritten = expect_unwritten
        self._report = report
        self._exit_process = exit_process
        self._first = threading.Lock()
        # The C library has its address only, so the object has to stay alive.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._handle)

    def install(self) -> None:
        """Install the handler, for as long as this object lives."""
        library = ctypes.CDLL(None)
        library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        library.signal(signal.SIGBUS, ctypes.cast(self._handler, ctypes.c_void_p))

    def _handle(self, _: int) -> None:
        if not self._first.acquire(blocking=False):
            threading.Event().wait()  # another thread reports it
        try:
            self._report(self._error())
        finally:
            self._exit_process()

    def _error(self) -> BundleError:
        try:
            self._expect_unwritten()
        except BundleError as error:
            return error
        return IntegrityError(
            "bundle: expected files that can be read, got SIGBUS; is a disk failing?"
        )
