"""Brings tasks from the queue to the device, and back what becomes of them, batch by batch.

To hand a batch to the device's thread and back takes about as long as to read ten requests, and
the two threads then get in each other's way. So a batch that is known to be quick runs right on
the loop, which keeps that from nothing that could not wait for it. gRPC's calls are another matter:
each takes four turns of the loop, and the next batch fills only if those go on meanwhile.

How long a program took once says how long it takes only if that does not depend on its inputs. One
that branches or loops by what it is given always runs on the device's thread, so that the loop can
answer for the process however long that takes. What runs in place is given up after `in_place_stall_s`.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable

from runtime.model import Model
from runtime.signature import bucket_name
from runtime.staging import count_elements
from server.batching.executor import BatchResult, DeviceExecutor
from server.batching.pending_request import BatchOutputs
from server.batching.queue import Batch, BatchQueue
from server.limits import Limits
from server.metrics import Metrics

log = logging.getLogger(__name__)

# A turn of the event loop in which nothing else happens takes 5 to 15 µs.
IDLE_TURN_S = 30e-6
# Longest that a batch waits because the loop is busy.
LINGER_S = 0.005
# What a batch may take in place: so many times what was measured, and at least so long, since a
# machine that is short of memory or processors is slow at times. The loop answers nobody meanwhile.
_IN_PLACE_FACTOR = 10_000
_IN_PLACE_LEAST_S = 5.0
# What a batch costs beside its program and its rows: 27 µs in a tight loop, and twice that once a
# program has emptied the caches. Without it programs that take as long for each row in any
# bucket would be run in small ones.
BATCH_S = 50e-6


class BatchScheduler:
    """Owns the queue, and the device with the batches that it has. All on the running loop.

    Args:
      model: measured and proven.
      limits: what the service takes on.
      metrics: counts the batches.
      deliver: called with each outcome, and with its outputs if they can be read row for row.
      give_up: called, with the reason, when the device is lost.
      hung: called, on another thread, when the loop itself hangs in the device.
      no_batching: run every task by itself.
      in_flight: batches that the device has at once.

    Attributes:
      model: the same.
      no_batching: the same.
      queue: the tasks that wait. Whoever puts one there calls `notify`.
      device: runs batches.
      fastest_s: what the quickest batch takes.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits,
        metrics: Metrics,
        deliver: Callable[[BatchResult, BatchOutputs | None], object],
        give_up: Callable[[str], object],
        hung: Callable[[], object],
        *,
        no_batching: bool,
        in_flight: int,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()

        def tell(call: Callable[..., object], what: object) -> None:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call, what)

        self.model = model
        self.no_batching = no_batching
        self._limits = limits
        self._metrics = metrics
        self._deliver = deliver
        self._on_fatal = give_up
        self._in_flight = in_flight
        # Whether a row's outputs have the same shape, whatever batch it is in.
        self._by_row = not any(
            isinstance(d, str) for s in model.signature.outputs for d in s.shape[1:]
        )
        self.fastest_s = min(group.planner.cost(1) for group in model.groups.values())
        self.queue = BatchQueue(
            {sizes: group.planner.with_overhead(BATCH_S) for sizes, group in model.groups.items()},
            capacity_rows=limits.queue_rows,
            max_delay_s=limits.queue_delay_s,
            no_batching=no_batching,
        )
        self.device = DeviceExecutor(
            lambda batch, arrays: model.run(
                model.groups[batch.sizes].programs[batch.bucket], arrays
            ),
            model.signature,
            canary=model.canary,
            deliver=functools.partial(tell, self._on_batch_done),
            died=functools.partial(tell, give_up, "the device thread died"),
            stall_s=limits.stall_s,
            hung=hung,
            threads=in_flight,
        )
        # Programs that run in place, and the seconds after which they are given up.
        self._in_place = {
            (sizes, bucket): in_place_stall_s(seconds)
            for sizes, group in model.groups.items()
            for bucket, seconds in group.planner.costs.items()
            if seconds <= limits.in_place_s and not model.data_dependent(sizes, bucket)
        }
        self._running: dict[Batch, asyncio.TimerHandle] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._notified = False
        self._prefer_thread = False
        self._waiting_since: float | None = None
        self._last_turn = 0.0
        self._failures = 0
        self.device.start()

    def notify(self, *, prefer_thread: bool = False) -> None:
        """Pump once the loop has taken in all that it has received, so that it shares a batch.

        Args:
          prefer_thread: whether what waits now is better run on the device's thread, however quick it is.
        """
        self._prefer_thread = self._prefer_thread or prefer_thread
        if not self._notified and len(self._running) < self._in_flight:
            self._notified = True
            self._loop.call_soon(self._dispatch)

    def close(self) -> None:
        """End the device's thread after the batches that it has."""
        self.device.close()

    def _dispatch(self) -> None:
        """Launch what is due and fits; else come back when it is."""
        self._notified = False
        queue = self.queue
        quick = bool(self._in_place) and not self._running and not self._prefer_thread
        if quick and queue.rows < queue.max_rows and self._wait_for_more():
            self.notify()
            return
        while len(self._running) < self._in_flight:
            now = time.monotonic()
            due = queue.due_in(now)
            if due is None:
                self._prefer_thread = False
                break
            if due > 0.0:
                if self._wake is None:
                    self._wake = self._loop.call_later(due, self._on_timer)
                return
            batch = queue.take(now)
            if batch is None:
                break
            here = not self._running and not self._prefer_thread
            if here and (batch.sizes, batch.bucket) in self._in_place:
                self._run_inline(batch)
                return
            stall = self._loop.call_later(self._limits.stall_s, self._on_fatal, "the device hangs")
            self._running[batch] = stall
            self.device.submit(batch)

    def _run_inline(self, batch: Batch) -> None:
        try:
            outcome = self.device.run_inline(batch, self._in_place[batch.sizes, batch.bucket])
        except BaseException:  # as on the device's thread: whatever it is, the device is lost
            log.critical("the device died", exc_info=True)
            self._on_fatal("the device died")
            return
        self._settle(outcome)
        self.notify()

    def _wait_for_more(self) -> bool:
        """Say whether a batch that would run in place has to wait for more to be read.

        Nothing is read while it runs, so it waits while the loop is busy: a turn of the loop in
        which something came takes longer than one that only comes back here. gRPC hands over a
        single event a turn, and a call makes four.
        """
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        elif now - self._last_turn < IDLE_TURN_S or now - self._waiting_since > LINGER_S:
            self._waiting_since = None
            return False
        self._last_turn = now
        return True

    def _on_timer(self) -> None:
        self._wake = None
        self._dispatch()

    def _on_batch_done(self, outcome: BatchResult) -> None:
        """Settle what the device's thread has done; called on the loop."""
        self._running.pop(outcome.batch).cancel()
        self._settle(outcome)
        self._dispatch()

    def _settle(self, outcome: BatchResult) -> None:
        """Pass on what became of a batch, count it, and see whether the device still works."""
        self._deliver(outcome, self._batch_outputs(outcome))
        batch, signature = outcome.batch, self.model.signature
        name = bucket_name(signature, batch.sizes, batch.bucket)
        pairs = zip(batch.tasks, outcome.answers, strict=True)
        answered = sum([task.rows for task, answer in pairs if type(answer) is tuple])
        self._metrics.count_batch(name, batch.bucket, batch.rows, answered, outcome.times)
        parts = [task.payload[0] for task in batch.tasks]
        self._metrics.count_padding(*count_elements(signature, parts, batch.bucket, batch.sizes))
        self._failures = self._failures + 1 if outcome.failed else 0
        if self._failures >= self._limits.failures:
            self._on_fatal(f"{self._failures} batches failed one after the other")

    def _batch_outputs(self, outcome: BatchResult) -> BatchOutputs | None:
        """Give a batch's outputs for all of its tasks, if they can be read row for row."""
        if not outcome.as_declared or not self._by_row:
            return None
        rows = [output[: outcome.batch.rows] for output in outcome.outputs]
        return BatchOutputs(dict(zip(self.model.output_names, rows, strict=True)))


def in_place_stall_s(measured_s: float) -> float:
    """Return how long a batch may take in place before the process is given up, in seconds.

    Args:
      measured_s: what its program took at load, in seconds.
    """
    return max(_IN_PLACE_LEAST_S, _IN_PLACE_FACTOR * measured_s)
