"""Memory that threads take while they prepare raw inputs, as a part of the memory budget."""

import collections
import contextlib
import threading
from collections.abc import Iterator

from server.batching.memory_budget import MemoryBudget

# Not counted: it would cost every small image more than it is worth, and threads are few.
FREE_BYTES = 1 << 23


class WorkingMemory:
    """Counts what threads take at once. May be called from any number of threads.

    What does not fit waits until other threads are done, and those that come later wait behind it; a
    thread by itself is always let through. So each gets its turn.

    Args:
      budget: that this is a part of.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._released = threading.Condition()
        self._waiting: collections.deque[object] = collections.deque()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Count `size` bytes within this context, which is entered once they fit."""
        if size <= FREE_BYTES:
            yield
            return
        turn = object()
        with self._released:
            self._waiting.append(turn)
            self._released.wait_for(
                lambda: self._waiting[0] is turn and self._budget.fits_working(size)
            )
            self._waiting.popleft()
            self._budget.working += size
            self._released.notify_all()
        try:
            yield
        finally:
            with self._released:
                self._budget.working -= size
                self._released.notify_all()
