"""Raw rows that wait to be prepared, and the few threads that prepare them.

The event loop owns what waits; a thread has one request at a time, piece by piece. A piece cannot be
interrupted, so that its rows and bytes are limited before it begins; between two of them a thread
leaves a request that has ended.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from runtime.errors import InvalidInput, without_frames
from runtime.preprocessing.each_row import prepare_each
from runtime.preprocessing.preparation import Prepared, Preparer, RawRows


class Preparation(NamedTuple):
    """What became of raw rows.

    Attributes:
      result: checked inputs, or the error.
      seconds: that a thread took.
    """

    result: Prepared | Exception
    seconds: float


class _Discarded(Exception):
    """The request that was being prepared has ended."""


class _Job:
    """A request in a thread.

    Attributes:
      progressed: when its last piece was begun, monotonic seconds.
      discarded: whether the request has ended meanwhile.
      stall: fires where a piece may have taken too long.
    """

    __slots__ = ("discarded", "progressed", "stall")

    def __init__(self) -> None:
        self.progressed = time.monotonic()
        self.discarded = False
        self.stall: asyncio.TimerHandle

    def proceed(self) -> None:
        """Note that a piece begins, in the thread; end the work if the request has ended."""
        if self.discarded:
            raise _Discarded
        self.progressed = time.monotonic()


class PreparationPool[K]:
    """Prepares raw rows in threads, the oldest first. All methods are called on one event loop.

    Args:
      preparer: of the model.
      threads: that prepare at once.
      on_prepared: called with the key of a request and what became of its rows.
      stall_s: maximum time of a piece in a thread.
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
        self._running: dict[K, _Job] = {}

    def submit(self, key: K, raw: RawRows) -> None:
        """Prepare rows as soon as a thread is free."""
        self._waiting[key] = raw
        self._start()

    def discard(self, key: K) -> None:
        """Drop the rows of a request that has ended; of those in a thread a result is still reported."""
        self._waiting.pop(key, None)
        if key in self._running:
            self._running[key].discarded = True

    def close(self) -> None:
        """End the threads after the pieces that they have."""
        self._waiting.clear()
        for job in self._running.values():
            job.discarded = True
        self._executor.shutdown(wait=False)

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._threads:
            key = next(iter(self._waiting))
            raw = self._waiting.pop(key)
            job = self._running[key] = _Job()
            job.stall = self._loop.call_later(self._stall_s, self._check_stall, job)
            future = self._executor.submit(self._prepare, raw, job)
            future.add_done_callback(functools.partial(self._wake, key, job))

    def _check_stall(self, job: _Job) -> None:
        left = job.progressed + self._stall_s - time.monotonic()
        if left > 0:
            job.stall = self._loop.call_later(left, self._check_stall, job)
        else:
            self._on_stall()

    def _prepare(self, raw: RawRows, job: _Job) -> Preparation:
        begin = time.perf_counter()
        result: Prepared | Exception
        try:
            if raw.each:
                result = prepare_each(self._preparer, raw, job.proceed)
            else:
                result = self._preparer.prepare(raw.inputs, raw.where, job.proceed)
        except InvalidInput as error:
            result = without_frames(error)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            result = error
        return Preparation(result, time.perf_counter() - begin)

    def _wake(self, key: K, job: _Job, done: Future[Preparation]) -> None:
        """Go on on the event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_done, key, job, done)

    def _on_done(self, key: K, job: _Job, done: Future[Preparation]) -> None:
        job.stall.cancel()
        del self._running[key]
        self._start()
        self._on_prepared(key, done.result())
