"""Stages that overlap: each takes from the one before it on a thread of its own.

Queues between them are short, so that what is in memory is bounded whichever stage is the slowest.
"""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any


class _Channel[T]:
    """A short queue between two threads that either can close.

    Args:
      depth: items that wait at most.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: collections.deque[T] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Add an item once there is room; return whether more is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def end(self, error: BaseException | None = None) -> None:
        """Let the taker have what there is, and then the error or the end."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def drop(self) -> None:
        """Want no more."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def take(self) -> Iterator[T]:
        """Yield the items; raises the error that ended them."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._items)
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error


def ahead[T](items: Iterator[T], name: str, depth: int = 1) -> Generator[T]:
    """Yield what a thread takes from an iterator before it is asked for.

    Once the consumer closes this, or an error ends it, the iterator is closed on its thread. The
    thread is a daemon: one that waits for a pipe that nothing is written to does not keep the process.

    Args:
      items: used by the thread alone.
      name: of the thread.
      depth: items that wait at most.
    """
    channel: _Channel[T] = _Channel(depth)

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not channel.put(item):
                    break
        except BaseException as caught:  # noqa: BLE001 (raised again where it is consumed)
            error = caught
        finally:
            close: Callable[[], Any] = getattr(items, "close", lambda: None)
            try:
                close()
            finally:
                channel.end(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    try:
        yield from channel.take()
    finally:
        channel.drop()


def mapped[A, B](function: Callable[[A], B], items: Iterator[A], workers: int) -> Generator[B]:
    """Yield `function(item)` for each item in order, several computed at once.

    Args:
      function: thread-safe.
      items: taken on the thread that consumes this.
      workers: threads, and results that wait at most.
    """
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        waiting: collections.deque[concurrent.futures.Future[B]] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            close: Callable[[], Any] = getattr(items, "close", lambda: None)
            close()
