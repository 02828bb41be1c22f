"""The thread that owns the device: it runs batches one after the other.

Batches come in through a queue and outcomes go out through a callback, called on this
thread. Nothing else is shared, so there is no lock. The thread exists for liveness: while a
program runs the event loop goes on taking requests and keeping deadlines. A device that gains
from two batches at once has two such threads. Quick batches the loop runs itself, while no
thread has one; meanwhile an idle thread watches over the loop, which cannot answer for itself then.
"""

import dataclasses
import logging
import math
import queue
import threading
import time
from collections.abc import Callable

import numpy as np

from runtime.errors import ExecutionError
from runtime.signature import Signature, TensorSpec
from runtime.staging import stage, unstage
from runtime.tensors import Array
from server.batching.queue import Batch, Task
from server.errors import OutOfMemory

log = logging.getLogger(__name__)

# An idle thread looks at the loop so often while that runs a batch in place, and at least once a second.
_LOOKS = 4
_LONGEST_TICK_S = 1.0

TaskOutputs = tuple[Array, ...] | Exception
Run = Callable[[Batch, tuple[Array, ...]], tuple[Array, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
      batch: the batch.
      answers: for each task its outputs, or why there are none.
      outputs: of the batch as a whole; empty if it failed.
      times: instants at which it was begun, staged, run and unstaged, monotonic; of the
        batch as a whole, not of the tasks that were tried again alone.
      as_declared: whether no output holds NaN, or an infinity that is not declared.
      failed: whether the device failed on every task, not for want of memory, and then on
        inputs that cannot be at fault.
    """

    batch: Batch
    answers: tuple[TaskOutputs, ...]
    outputs: tuple[Array, ...]
    times: tuple[float, float, float, float]
    as_declared: bool
    failed: bool

    @property
    def seconds(self) -> float:
        """Give the time it took."""
        return self.times[3] - self.times[0]


class DeviceExecutor:
    """Runs batches on threads of its own.

    Args:
      run: calls the program of a batch; may raise ExecutionError.
      signature: of the model.
      canary: runs what cannot fail on a device that works.
      deliver: called with each outcome, on the device's thread.
      died: called if a thread ends by anything but `close`.
      stall_s: longest that a batch may take in place, whatever `run_inline` is told.
      hung: called, on a thread of the device, when one takes longer; has to end the process.
      threads: batches that run at once.
    """

    def __init__(
        self,
        run: Run,
        signature: Signature,
        canary: Callable[[], object],
        deliver: Callable[[BatchResult], object],
        died: Callable[[], object],
        stall_s: float,
        hung: Callable[[], object],
        threads: int = 1,
    ) -> None:
        self._run = run
        self._signature = signature
        self._canary = canary
        self._deliver = deliver
        self._died = died
        self._stall_s = stall_s
        self._hung = hung
        self._here: tuple[Batch, float] | None = None
        self._inbox: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._loop, name="device", daemon=True) for _ in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batch) -> None:
        """Run a batch once a thread has none."""
        self._inbox.put(batch)

    def run_inline(self, batch: Batch, stall_s: float = math.inf) -> BatchResult:
        """Run a batch on the calling thread; none may be with the threads.

        Args:
          batch: to run.
          stall_s: longest that it may take, seconds.
        """
        self._here = batch, min(stall_s, self._stall_s)
        try:
            return self.run_batch(batch)
        finally:
            self._here = None

    def close(self) -> None:
        """End the threads after the batches that they have."""
        for _ in self._threads:
            self._inbox.put(None)

    def _loop(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._deliver(self.run_batch(batch))
        except BaseException:  # whatever it is, the thread ends with it
            log.critical("the device thread died", exc_info=True)
            self._died()

    def _next(self) -> Batch | None:
        """Wait for a batch, and look now and then whether the loop hangs in one.

        It counts looks and not seconds: a process that was suspended has had no time to run.
        """
        tick_s = min(self._stall_s / _LOOKS, _LONGEST_TICK_S)
        seen, looks = None, 0
        while True:
            try:
                return self._inbox.get(timeout=tick_s)
            except queue.Empty:
                here = self._here
                looks = looks + 1 if here is not None and here is seen else 0
                seen = here
                if here is not None and looks * tick_s >= here[1]:
                    log.critical("the device hangs: a batch ran in place for %.3g s", here[1])
                    self._hung()

    def run_batch(self, batch: Batch) -> BatchResult:
        """Run one batch; on a device error each of its tasks once more, alone.

        A request whose values upset the device thereby fails by itself.
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
        except Exception as error:  # whatever it is, its tasks must hear of it
            log.exception("a batch of %d tasks failed", len(batch.tasks))
            outputs = ()
            answers = tuple(self._retry_alone(batch, task, error) for task in batch.tasks)
            declared = False
            failed = self._is_broken(answers)
        else:
            failed = False
        return BatchResult(batch, answers, outputs, (begun, staged, run, clock()), declared, failed)

    def _is_broken(self, answers: tuple[TaskOutputs, ...]) -> bool:
        """Tell a device that is broken from requests that upset it."""
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
        # Memory that a program lacked it lacks for one task as well: its shapes are the same.
        if len(batch.tasks) == 1 or not isinstance(error, ExecutionError) or _no_memory(error):
            return as_task_error(error)
        try:
            return self._attempt(Batch(batch.sizes, batch.bucket, (task,), task.rows))[0]
        except Exception as again:  # noqa: BLE001 (likewise)
            return as_task_error(again)


def is_as_declared(spec: TensorSpec, output: Array) -> bool:
    """Whether an output is finite, or holds infinities where the bundle declares them; no NaN."""
    if output.dtype.kind in "biu":
        return True
    if spec.nonfinite:
        return not np.isnan(output).any()
    return bool(np.isfinite(output).all())


def as_task_error(error: Exception) -> Exception:
    """Tell a device that was out of memory from one that failed: the former may work again."""
    if _no_memory(error):
        return OutOfMemory("the device has no memory for this batch now")
    return error


def _no_memory(error: Exception) -> bool:
    return isinstance(error, ExecutionError) and "RESOURCE_EXHAUSTED" in str(error)
