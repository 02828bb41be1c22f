"""The device executor: the thread that owns a device and runs its batches one after the other.

Each device has an executor of its own, and all get their batches from one scheduler.

Batches are passed in through a queue and results out through a callback, called on this
thread. Nothing else is shared, so there is no lock. The thread exists for liveness: while a
program runs the event loop still accepts requests and enforces deadlines. A device that gains
from concurrent batches has two such threads. Quick batches run inline, on the event loop's thread,
while no device thread has one; an idle device thread then watches the loop, which cannot do it itself.
"""

import dataclasses
import logging
import math
import queue
import threading
import time
from collections.abc import Callable

from runtime.errors import ExecutionError
from runtime.records.predictions import is_as_declared
from runtime.signature import Signature
from runtime.staging import stage, unstage
from runtime.tensors import Array
from server.batching.failures import Failures
from server.batching.queue import Batch, Task
from server.errors import OutOfMemory

log = logging.getLogger(__name__)

# An idle thread checks an inline batch so many times before its stall limit, and at least each second.
_STALL_CHECKS = 4
_MAX_TICK_S = 1.0

TaskOutputs = tuple[Array, ...] | Exception
Run = Callable[[Batch, tuple[Array, ...]], tuple[Array, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a batch.

    Attributes:
      batch: the batch.
      device: name of the device that ran it, such as `cuda:1`.
      answers: for each task its outputs, or the error that it gets.
      outputs: of the whole batch, padding included; empty if it failed.
      times: instants at which it was begun, staged, run and unstaged, in monotonic seconds; of the
        whole batch, not of tasks that were retried alone.
      as_declared: whether no output holds NaN, or an infinity that the bundle does not declare.
      failed: whether the device failed on every task, other than by lack of memory, and on the
        canary's inputs too, which cannot be the cause.
    """

    batch: Batch
    device: str
    answers: tuple[TaskOutputs, ...]
    outputs: tuple[Array, ...]
    times: tuple[float, float, float, float]
    as_declared: bool
    failed: bool

    @property
    def seconds(self) -> float:
        """Return the seconds that it took."""
        return self.times[3] - self.times[0]


class DeviceExecutor:
    """Runs batches on threads of its own.

    Args:
      name: of the device, such as `cuda:1`.
      run: calls the program of a batch; may raise ExecutionError.
      signature: of the model.
      canary: runs the smallest program on harmless inputs; raises if the device is broken.
      deliver: called with each result, on the device's thread.
      failures: called on a device thread: `on_fatal` if one ends by anything but `close`, `on_hang`
        if an inline batch exceeds its stall limit.
      stall_s: upper limit of every inline batch's stall limit, in seconds.
      threads: batches that run concurrently.

    Attributes:
      name: the same.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        signature: Signature,
        canary: Callable[[], object],
        deliver: Callable[[BatchResult], object],
        failures: Failures,
        stall_s: float,
        threads: int = 1,
    ) -> None:
        self.name = name
        self._run = run
        self._signature = signature
        self._canary = canary
        self._deliver = deliver
        self._failures = failures
        self._stall_s = stall_s
        # The inline batch that runs now, and its stall limit.
        self._inline: tuple[Batch, float] | None = None
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._loop, name="device", daemon=True) for _ in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batch) -> None:
        """Queue a batch for the next free device thread."""
        self._inbox.put(batch)

    def run_inline(self, batch: Batch, stall_s: float = math.inf) -> BatchResult:
        """Run a batch on the calling thread; the device's threads must have none.

        Args:
          batch: to run.
          stall_s: its stall limit in seconds, after which `on_hang` is called.

        Returns:
          Its result, which is not delivered.
        """
        self._inline = batch, min(stall_s, self._stall_s)
        try:
            return self.run_batch(batch)
        finally:
            self._inline = None

    def close(self) -> None:
        """End the threads after the batches that they have."""
        for _ in self._threads:
            self._inbox.put(None)

    def _loop(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._deliver(self.run_batch(batch))
        except BaseException:  # whatever it is, the thread ends with it
            log.critical("device %s: its thread died", self.name, exc_info=True)
            self._failures.on_fatal(f"device {self.name}: its thread died")

    def _next(self) -> Batch | None:
        """Wait for a batch, and check meanwhile whether the event loop hangs in an inline one.

        It counts ticks and not seconds: a process that was suspended has had no time to run.
        """
        tick_s = min(self._stall_s / _STALL_CHECKS, _MAX_TICK_S)
        last, ticks = None, 0
        while True:
            try:
                return self._inbox.get(timeout=tick_s)
            except queue.Empty:
                inline = self._inline
                ticks = ticks + 1 if inline is not None and inline is last else 0
                last = inline
                if inline is not None and ticks * tick_s >= inline[1]:
                    log.critical(
                        "device %s hangs: a batch ran inline for %.3g s", self.name, inline[1]
                    )
                    self._failures.on_hang()

    def run_batch(self, batch: Batch) -> BatchResult:
        """Run one batch; on a device error retry each of its tasks alone.

        So a request whose values make the device fail, fails without its batch-mates.
        """
        clock = time.monotonic
        begun = staged = run = clock()
        try:
            parts = [task.payload[0] for task in batch.tasks]
            inputs = stage(self._signature, parts, batch.bucket, batch.sizes)
            staged = clock()
            outputs = self._run(batch, inputs)
            run = clock()
            answers: tuple[TaskOutputs, ...] = tuple(unstage(self._signature, parts, outputs))
            declared = all(map(is_as_declared, self._signature.outputs, outputs))
        except Exception as error:  # whatever it is, its tasks get it
            log.exception("device %s: a batch of %d tasks failed", self.name, len(batch.tasks))
            outputs = ()
            answers = tuple(self._retry_alone(batch, task, error) for task in batch.tasks)
            declared = False
            failed = self._is_broken(answers)
        else:
            failed = False
        times = begun, staged, run, clock()
        return BatchResult(batch, self.name, answers, outputs, times, declared, failed)

    def _is_broken(self, answers: tuple[TaskOutputs, ...]) -> bool:
        """Whether the device is broken, rather than its requests at fault: not even the canary runs."""
        if any(not isinstance(a, Exception) or isinstance(a, OutOfMemory) for a in answers):
            return False
        try:
            self._canary()
        except Exception as error:  # noqa: BLE001 (whatever it is, the device failed)
            return not isinstance(as_task_error(error), OutOfMemory)
        return False

    def _attempt(self, batch: Batch) -> list[tuple[Array, ...]]:
        parts = [task.payload[0] for task in batch.tasks]
        inputs = stage(self._signature, parts, batch.bucket, batch.sizes)
        return unstage(self._signature, parts, self._run(batch, inputs))

    def _retry_alone(self, batch: Batch, task: Task, error: Exception) -> TaskOutputs:
        # A program that lacked memory lacks it for one task as well: its shapes are the same.
        if len(batch.tasks) == 1 or not isinstance(error, ExecutionError) or _no_memory(error):
            return as_task_error(error)
        try:
            return self._attempt(Batch(batch.sizes, batch.bucket, (task,), task.rows))[0]
        except Exception as again:  # noqa: BLE001 (likewise)
            return as_task_error(again)


def as_task_error(error: Exception) -> Exception:
    """Return OutOfMemory for a lack of memory, which may pass; any other error unchanged."""
    if _no_memory(error):
        return OutOfMemory("the device has no memory for this batch now")
    return error


def _no_memory(error: Exception) -> bool:
    return isinstance(error, ExecutionError) and "RESOURCE_EXHAUSTED" in str(error)
