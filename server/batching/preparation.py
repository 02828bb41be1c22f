"""Raw rows that wait to be prepared, and the few threads that prepare them.

The event loop owns what waits; a thread has one request at a time, or several small ones, each of which
stops between two rows where it has ended meanwhile. Nothing stops it within a row, so that the bytes of a text and the pixels of an
image are limited before it begins.
"""

import asyncio
import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from runtime.errors import InvalidInput, without_frames
from runtime.preprocessing.each_row import prepare_each
from runtime.preprocessing.preparation import Prepared, Preparer, RawRows
from server.batching.working_memory import WorkingMemory

# What a thread takes at once: so many requests, of together so many bytes, or one that is larger.
_MAX_REQUESTS = 16
_MAX_BYTES = 4096


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


class _Turn:
    """What a thread does at once: some requests, one after the other.

    Attributes:
      progress: when the thread last began with a row, monotonic seconds.
      stall: fires where a row may have taken too long.
    """

    def __init__(self) -> None:
        self.progress = time.monotonic()
        self.stall: asyncio.TimerHandle


class _Resources:
    """What a thread may use for one request.

    Args:
      memory: of all threads.
      turn: that the request is a part of.

    Attributes:
      ended: whether the request has; set on the event loop.
    """

    def __init__(self, memory: WorkingMemory, turn: _Turn) -> None:
        self._memory = memory
        self._turn = turn
        self.ended = False

    def memory(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Return a context that `size` bytes may be used in; entering it may wait for others."""
        return self._memory.taken(size)

    def check(self) -> None:
        """Raise Abandoned where the request has ended; otherwise another row begins."""
        self._turn.progress = time.monotonic()
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
        self._turns = 0

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
        while self._waiting and self._turns < self._threads:
            self._turns += 1
            turn = _Turn()
            requests = [
                (key, self._waiting.pop(key), _Resources(self._memory, turn))
                for key in self._next()
            ]
            self._running.update((key, resources) for key, _, resources in requests)
            self._watch(turn, self._stall_s)
            future = self._executor.submit(self._prepare_all, requests)
            future.add_done_callback(functools.partial(self._wake, turn))

    def _next(self) -> list[K]:
        """Return what a thread is to do at once: the oldest request, and small ones behind it.

        A thread is given work and reports it by way of locks and pipes, which cost more than a short
        text does. Other threads that are free get their share.
        """
        share = math.ceil(len(self._waiting) / (self._threads - self._turns + 1))
        found: list[K] = []
        size = 0
        for key, raw in itertools.islice(self._waiting.items(), min(share, _MAX_REQUESTS)):
            size += _size(raw)
            if found and size > _MAX_BYTES:
                break
            found.append(key)
        return found

    def _watch(self, turn: _Turn, seconds: float) -> None:
        turn.stall = self._loop.call_later(seconds, self._expect_progress, turn)

    def _expect_progress(self, turn: _Turn) -> None:
        """Report a stall where a thread has been at the same rows for too long."""
        left_s = turn.progress + self._stall_s - time.monotonic()
        if left_s > 0:
            self._watch(turn, left_s)
        else:
            self._on_stall()

    def _prepare_all(
        self, requests: Sequence[tuple[K, RawRows, _Resources]]
    ) -> list[tuple[K, Preparation]]:
        return [(key, self._prepare(raw, resources)) for key, raw, resources in requests]

    def _prepare(self, raw: RawRows, resources: _Resources) -> Preparation:
        begin = time.perf_counter()
        result: Prepared | Exception
        try:
            resources.check()
            if raw.each:
                result = prepare_each(self._preparer, raw, resources)
            else:
                result = self._preparer.prepare(raw.inputs, raw.where, resources)
        except InvalidInput as error:
            result = without_frames(error)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            result = error
        return Preparation(result, time.perf_counter() - begin)

    def _wake(self, turn: _Turn, done: Future[list[tuple[K, Preparation]]]) -> None:
        """Go on on the event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_done, turn, done)

    def _on_done(self, turn: _Turn, done: Future[list[tuple[K, Preparation]]]) -> None:
        turn.stall.cancel()
        self._turns -= 1
        prepared = done.result()
        for key, _ in prepared:
            del self._running[key]
        self._start()
        for key, preparation in prepared:
            self._on_prepared(key, preparation)


def _size(raw: RawRows) -> int:
    """Return the bytes of raw values, about: their characters, and their files as they are."""
    return sum(
        len(value) if isinstance(value, str | bytes | memoryview) else _MAX_BYTES
        for values in raw.inputs.values()
        for value in values
    )
