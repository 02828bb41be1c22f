"""Raw rows that wait to be prepared, and the few threads that prepare them.

The event loop owns what waits; a thread has one request at a time, which stops between two rows where
it has ended meanwhile. Nothing stops it within a row, so that the bytes of a text and the pixels of an
image are limited before it begins.
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
from server.batching.working_memory import WorkingMemory


class Preparation(NamedTuple):
    """What became of raw rows.

    Attributes:
      result: checked inputs, or the error.
      seconds: that a thread took.
    """

    result: Prepared | Exception
    seconds: float


class Abandoned(Exception):
    """A request ended while its rows were being prepared; it is never passed on."""


class _Resources:
    """What a thread may use for one request.

    Args:
      memory: of all threads.

    Attributes:
      ended: whether the request has; set on the event loop.
      progress: when the thread last began with a row, monotonic seconds.
      stall: fires where a row may have taken too long.
    """

    def __init__(self, memory: WorkingMemory) -> None:
        self._memory = memory
        self.ended = False
        self.progress = time.monotonic()
        self.stall: asyncio.TimerHandle

    def memory(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Return a context that `size` bytes may be used in; entering it may wait for others."""
        return self._memory.taken(size)

    def check(self) -> None:
        """Raise Abandoned where the request has ended; otherwise another row begins."""
        self.progress = time.monotonic()
        if self.ended:
            raise Abandoned


class PreparationPool[K]:
    """Prepares raw rows in threads, the oldest first. All methods are called on one event loop.

    Args:
      preparer: of the model.
      threads: that prepare at once.
      memory: that these take together.
      on_prepared: called with the key of a request and what became of its rows.
      stall_s: maximum time of a thread for a few rows of a request.
      on_stall: called where one takes longer: native code that does not return.
    """

    def __init__(
        self,
        preparer: Preparer,
        threads: int,
        memory: WorkingMemory,
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
        self._memory = memory
        self._running: dict[K, _Resources] = {}

    def submit(self, key: K, raw: RawRows) -> None:
        """Prepare rows as soon as a thread is free."""
        self._waiting[key] = raw
        self._start()

    def discard(self, key: K) -> None:
        """Drop rows that wait; those in a thread end at the next row, and are reported."""
        self._waiting.pop(key, None)
        if key in self._running:
            self._running[key].ended = True

    def close(self) -> None:
        """End the threads, each after the row that it has."""
        self._waiting.clear()
        for resources in self._running.values():
            resources.ended = True
        self._executor.shutdown(wait=False)

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._threads:
            key = next(iter(self._waiting))
            raw = self._waiting.pop(key)
            resources = self._running[key] = _Resources(self._memory)
            self._watch(resources, self._stall_s)
            future = self._executor.submit(self._prepare, raw, resources)
            future.add_done_callback(functools.partial(self._wake, key, resources))

    def _watch(self, resources: _Resources, seconds: float) -> None:
        resources.stall = self._loop.call_later(seconds, self._expect_progress, resources)

    def _expect_progress(self, resources: _Resources) -> None:
        """Report a stall where a thread has been at the same rows for too long."""
        left_s = resources.progress + self._stall_s - time.monotonic()
        if left_s > 0:
            self._watch(resources, left_s)
        else:
            self._on_stall()

    def _prepare(self, raw: RawRows, resources: _Resources) -> Preparation:
        begin = time.perf_counter()
        result: Prepared | Exception
        try:
            if raw.each:
                result = prepare_each(self._preparer, raw, resources)
            else:
                result = self._preparer.prepare(raw.inputs, raw.where, resources)
        except InvalidInput as error:
            result = without_frames(error)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            result = error
        return Preparation(result, time.perf_counter() - begin)

    def _wake(self, key: K, resources: _Resources, done: Future[Preparation]) -> None:
        """Go on on the event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_done, key, resources, done)

    def _on_done(self, key: K, resources: _Resources, done: Future[Preparation]) -> None:
        resources.stall.cancel()
        del self._running[key]
        self._start()
        self._on_prepared(key, done.result())
