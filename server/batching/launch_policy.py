"""Which batch runs next, when, on which thread and device. No event loop, no thread, no clock."""

from collections.abc import Mapping

from server.batching.queue import Batch, BatchQueue, Sizes

# A turn of the event loop in which nothing else happens takes 5 to 15 µs.
IDLE_TURN_S = 30e-6
# Longest that a batch waits because the loop is busy.
MAX_BUSY_WAIT_S = 0.005
# Stall limit of inline batches: so many times the measured time, and at least so long, since a
# machine that is short of memory or processors is slow at times. The loop answers no request meanwhile.
_INLINE_STALL_FACTOR = 10_000
_MIN_INLINE_STALL_S = 5.0


class LaunchPolicy:
    """Decides what a scheduler launches, from the queue, the time, and what runs where.

    Called by one caller at a time, which reports each batch of an executor by `begin` and `end`.
    The devices are of one kind, and known by their places, from 0.

    Args:
      queue: the tasks that wait.
      inline_stall_s: program, as (axis sizes, batch size), to its stall limit in seconds, for
        those that may run inline.
      max_running: batches that a device may have at once.
      devices: number of devices.

    Attributes:
      running: batches that the executors have.
      has_capacity: whether another batch may be launched.
      prefer_thread: whether what waits now runs on an executor, however quick it is. Reset once
        the queue is empty.
    """

    def __init__(
        self,
        queue: BatchQueue,
        inline_stall_s: Mapping[tuple[Sizes, int], float],
        max_running: int = 1,
        devices: int = 1,
    ) -> None:
        self._queue = queue
        self._inline_stall_s = dict(inline_stall_s)
        self._max_running = max_running * devices
        self._several = devices > 1
        self._on_device = [0] * devices
        # The device that has ended a batch last stands last.
        self._order = list(range(devices))
        self._busy_since: float | None = None
        self._last_turn = 0.0
        self.running = 0
        self.has_capacity = True
        self.prefer_thread = False

    def begin(self) -> int:
        """Count a batch, and return the device whose executor gets it.

        It has the fewest batches; among several, the one that was free first.
        """
        device = min(self._order, key=self._on_device.__getitem__)
        self._on_device[device] += 1
        self.running += 1
        self.has_capacity = self.running < self._max_running
        return device

    def end(self, device: int) -> None:
        """Count a batch of a device as done."""
        self._on_device[device] -= 1
        self._order.remove(device)
        self._order.append(device)
        self.running -= 1
        self.has_capacity = True

    def decide(self, now: float) -> Batch | float | None:
        """Return a batch to launch now, taken out of the queue.

        Args:
          now: monotonic seconds.

        Returns:
          The batch; or the seconds after which to ask again, 0.0 for the loop's next turn; or
          None: nothing waits, or nothing more may be launched before a batch is done.
        """
        if not self.has_capacity:
            return None
        queue = self._queue
        if not queue.rows:
            self.prefer_thread = False
            return None
        if self._wait_for_more(now):
            return 0.0
        due_s = queue.due_in(now)
        if due_s:
            return due_s
        return queue.take(now)

    def inline_stall_s(self, batch: Batch) -> float | None:
        """Return the stall limit of a batch that is to run inline, in seconds; None on a thread.

        With several devices a batch is inline only if no more rows wait: while the loop runs it, no other
        device gets any.
        """
        if self.running or self.prefer_thread:
            return None
        if self._several and self._queue.rows:
            return None
        return self._inline_stall_s.get((batch.sizes, batch.bucket))

    def _wait_for_more(self, now: float) -> bool:
        """Whether a batch that would run inline waits a turn of the loop, in which more is read.

        Nothing is read while it runs, so it waits while the loop is busy: a turn in which
        requests were read takes longer than one that only returns here. Without that clients that
        send their next request once they are answered fall into two halves that take turns: at 32
        and 64 connections batches of 16 instead of 31 rows, and 113 and 119 instead of 91 and 96 µs of
        processor time a request (docs/performance.md). At 1 to 16 connections it makes no difference.
        """
        if not self._inline_stall_s or self.running or self.prefer_thread:
            return False
        since = self._busy_since
        idle = since is not None and now - self._last_turn < IDLE_TURN_S
        late = since is not None and now - since > MAX_BUSY_WAIT_S
        if idle or late or self._queue.rows >= self._queue.max_rows:
            self._busy_since = None
            return False
        self._busy_since = now if since is None else since
        self._last_turn = now
        return True


def inline_stall_s(measured_s: float) -> float:
    """Return how long a batch may run inline before the process is ended, in seconds.

    Args:
      measured_s: what its program took at load, in seconds.
    """
    return max(_MIN_INLINE_STALL_S, _INLINE_STALL_FACTOR * measured_s)
