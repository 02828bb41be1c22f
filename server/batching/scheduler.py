"""The batch scheduler: takes batches from the queue to the devices, and passes their results on.

There is one queue, however many devices: a batch goes to one that is free, so none waits behind
a device that is slow while another is idle.

To hand a batch to the device's thread and back takes about as long as to read ten requests, and
the two threads then compete for the interpreter. So a batch that is known to be quick runs inline,
on the loop's own thread. gRPC calls are the exception: each takes four turns of the loop, and the
next batch fills only if those go on meanwhile.

How long a program took once says how long it takes only if that does not depend on its inputs. One
with a loop or branch that depends on values always runs on the device's thread, so that the loop
answers for the process however long that takes. An inline batch that exceeds its stall limit ends
the process.

`LaunchPolicy` decides; the scheduler owns what acts: the loop's callbacks and timers, and an executor
for each device.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence

from runtime.model import Model
from server.batching.batch_recorder import BatchRecorder
from server.batching.executor import BatchResult, DeviceExecutor
from server.batching.failures import Failures
from server.batching.launch_policy import LaunchPolicy, inline_stall_s
from server.batching.pending_request import BatchOutputs
from server.batching.queue import Batch, BatchQueue
from server.limits import Limits
from server.metrics import Metrics

log = logging.getLogger(__name__)

# What a batch costs beside its program and its rows: 27 µs in a tight loop, and twice that once a
# program has emptied the caches. Without it programs that take as long for each row in any
# bucket would be run in small ones.
BATCH_S = 50e-6


class BatchScheduler:
    """Launches batches whenever a device has capacity. Everything on the running loop.

    Args:
      models: the same bundle on each device, validated; the first one's plan is used for all.
      limits: of the queue, and of what a batch may take.
      metrics: counts the batches.
      deliver: called with each result, and with its outputs if they can be read row for row.
      failures: called on the loop when a device is lost, on another thread when the loop hangs.
      no_batching: run every task by itself.
      max_running: batches that a device has at once.

    Attributes:
      models: the same.
      queue: the tasks that wait. Whoever puts one there calls `notify`.
      executors: run the batches of each device.
      fastest_s: what the quickest batch takes, seconds.
    """

    def __init__(
        self,
        models: Sequence[Model],
        limits: Limits,
        metrics: Metrics,
        deliver: Callable[[BatchResult, BatchOutputs | None], object],
        failures: Failures,
        *,
        no_batching: bool,
        max_running: int,
    ) -> None:
        model = models[0]
        self._loop = asyncio.get_running_loop()
        self._failures = failures
        self._stall_s = limits.stall_s
        self._recorder = BatchRecorder(model, metrics, deliver, failures, limits.failures)
        self.models = tuple(models)
        self.fastest_s = min(group.planner.cost(1) for group in model.groups.values())
        self.queue = BatchQueue(
            {sizes: group.planner.with_overhead(BATCH_S) for sizes, group in model.groups.items()},
            capacity_rows=limits.queue_rows,
            max_delay_s=limits.queue_delay_s,
            no_batching=no_batching,
        )
        self._policy = LaunchPolicy(
            self.queue,
            {
                (sizes, bucket): inline_stall_s(seconds)
                for sizes, group in model.groups.items()
                for bucket, seconds in group.planner.costs.items()
                if seconds <= limits.inline_s and not model.data_dependent(sizes, bucket)
            },
            max_running,
            len(models),
        )
        self.executors = tuple(self._executor(model, max_running) for model in models)
        # An inline batch runs while no executor has one, so any will do: each in its turn.
        self._inline_turns = itertools.cycle(self.executors)
        # Batches that executors have, each with its device's place and the timer of its stall limit.
        self._running: dict[Batch, tuple[int, asyncio.TimerHandle]] = {}
        self._due_timer: asyncio.TimerHandle | None = None
        self._notified = False
        for executor in self.executors:
            executor.start()

    def _executor(self, model: Model, threads: int) -> DeviceExecutor:
        return DeviceExecutor(
            model.device_name,
            lambda batch, arrays: model.run(
                model.groups[batch.sizes].programs[batch.bucket], arrays
            ),
            model.signature,
            canary=model.canary,
            deliver=lambda result: self._call_on_loop(self._on_batch_done, result),
            failures=self,
            stall_s=self._stall_s,
            threads=threads,
        )

    def notify(self, *, prefer_thread: bool = False) -> None:
        """Dispatch once the loop has read all that it has received, so that it shares a batch.

        Args:
          prefer_thread: whether what waits now runs on the device's thread, however quick it is.
        """
        policy = self._policy
        if prefer_thread:
            policy.prefer_thread = True
        if not self._notified and policy.has_capacity:
            self._notified = True
            self._loop.call_soon(self._dispatch)

    def close(self) -> None:
        """End the devices' threads after the batches that they have."""
        for executor in self.executors:
            executor.close()

    def on_fatal(self, reason: str) -> None:
        """Report on the loop that a device is lost; called on that device's thread."""
        self._call_on_loop(self._failures.on_fatal, reason)

    def on_hang(self) -> None:
        """Report that the loop hangs; called on a device's thread."""
        self._failures.on_hang()

    def _call_on_loop[T](self, call: Callable[[T], object], argument: T) -> None:
        # A closed loop has no request left that waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, argument)

    def _dispatch(self) -> None:
        """Launch what is due while there is capacity; else set the timer for when it is due."""
        self._notified = False
        policy = self._policy
        while True:
            decision = policy.decide(time.monotonic())
            if isinstance(decision, Batch):
                stall_s = policy.inline_stall_s(decision)
                if stall_s is not None:
                    self._run_inline(decision, stall_s)
                    return
                self._submit(decision)
            elif decision == 0.0:
                self.notify()
                return
            else:
                if decision is not None and self._due_timer is None:
                    self._due_timer = self._loop.call_later(decision, self._on_timer)
                return

    def _submit(self, batch: Batch) -> None:
        device = self._policy.begin()
        executor = self.executors[device]
        stall = self._loop.call_later(
            self._stall_s, self._failures.on_fatal, f"device {executor.name} hangs"
        )
        self._running[batch] = device, stall
        executor.submit(batch)

    def _run_inline(self, batch: Batch, stall_s: float) -> None:
        executor = next(self._inline_turns)
        try:
            result = executor.run_inline(batch, stall_s)
        except BaseException:  # as on the device's thread: whatever it is, the device is lost
            log.critical("device %s died", executor.name, exc_info=True)
            self._failures.on_fatal(f"device {executor.name} died")
            return
        self._recorder.record(result)
        if self.queue.rows:
            self.notify()

    def _on_timer(self) -> None:
        self._due_timer = None
        self._dispatch()

    def _on_batch_done(self, result: BatchResult) -> None:
        """Record what a device's thread has run, and launch the next; called on the loop."""
        device, stall = self._running.pop(result.batch)
        stall.cancel()
        self._policy.end(device)
        self._recorder.record(result)
        self._dispatch()
