"""Raw rows that wait to be prepared, and the few threads that prepare them.

The event loop owns what waits; a thread has one request at a time, which nothing can cancel, so that
the rows of a request and the bytes of its texts are limited before it begins.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from runtime.preprocessing.preparation import Prepared, Preparer, RawRows


class Preparation(NamedTuple):
    """What became of raw rows.

    Attributes:
      result: checked inputs, or the error.
      seconds: that a thread took.
    """

    result: Prepared | Exception
    seconds: float


class PreparationPool[K]:
    """Prepares raw rows in threads, the oldest first. All methods are called on one event loop.

    Args:
      preparer: of the model.
      threads: that prepare at once.
      on_prepared: called with the key of a request and what became of its rows.
      stall_s: maximum time of a request in a thread.
      on_stall: called where one takes longer: native code that does not return.
    """

    def __init__(
        self,
        preparer: Preparer,
        threads: int,
        on_prepared: Callable[[K, Preparation], object],
        *,
        stall_s: float,
        on_stall: Callable[[], object],
    ) -> None:
        self._preparer = preparer
        self._threads = threads
        self._on_prepared = on_prepared
        self._stall_s = stall_s
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        # In order of arrival.
        self._waiting: dict[K, RawRows] = {}
        self._running = 0

    def submit(self, key: K, raw: RawRows) -> None:
        """Prepare rows as soon as a thread is free."""
        self._waiting[key] = raw
        self._start()

    def discard(self, key: K) -> None:
        """Drop rows that wait; of those in a thread the result is still reported."""
        self._waiting.pop(key, None)

    def close(self) -> None:
        """End the threads after the rows that they have."""
        self._waiting.clear()
        self._executor.shutdown(wait=False)

    def _start(self) -> None:
        while self._waiting and self._running < self._threads:
            key = next(iter(self._waiting))
            raw = self._waiting.pop(key)
            self._running += 1
            stall = self._loop.call_later(self._stall_s, self._on_stall)
            future = self._executor.submit(self._prepare, raw)
            future.add_done_callback(functools.partial(self._wake, key, stall))

    def _prepare(self, raw: RawRows) -> Preparation:
        begin = time.perf_counter()
        result: Prepared | Exception
        try:
            result = self._preparer.prepare(raw.inputs, raw.where)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            result = error
        return Preparation(result, time.perf_counter() - begin)

    def _wake(self, key: K, stall: asyncio.TimerHandle, done: Future[Preparation]) -> None:
        """Go on on the event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_done, key, stall, done)

    def _on_done(self, key: K, stall: asyncio.TimerHandle, done: Future[Preparation]) -> None:
        stall.cancel()
        self._running -= 1
        self._start()
        self._on_prepared(key, done.result())
