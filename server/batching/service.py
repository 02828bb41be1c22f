"""The inference service, independent of any protocol: a batch queue in front of the devices.

How a request is processed, all on one event loop but for step 4:

1. `submit` splits its rows into tasks; raw rows are prepared by the `PreparationPool` first,
   within the same limits and deadlines
2. the tasks wait in the BatchQueue, until their deadline at most
3. the `BatchScheduler` takes a batch out whenever a device has capacity
4. that device's thread, or the loop itself if the batch is quick, stages, runs and unstages it
5. `_deliver` adds its rows to each request: one wake-up of the loop for the batch

Callbacks and no coroutines: a task, a future and a timer for each request cost more than
everything else that is done for it here.

The loop owns the queue, each device's thread owns its device; nothing needs a lock.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from runtime.inputs import Checked
from runtime.model import Model
from runtime.preprocessing.preparation import RawRows
from runtime.program import count_compiles
from runtime.records.predictions import is_as_declared
from server.batching.executor import BatchResult
from server.batching.failures import Failures
from server.batching.memory_budget import MemoryBudget
from server.batching.open_requests import OpenRequests
from server.batching.pending_request import (
    BatchOutputs,
    InferenceResult,
    PendingRequest,
    PreparationMetadata,
    TaskResult,
)
from server.batching.preparation import Preparation, PreparationPool
from server.batching.scheduler import BatchScheduler
from server.batching.service_state import ServiceState, State
from server.batching.working_memory import WorkingMemory
from server.errors import DeadlineExceeded, Draining, NotReady, Overloaded, TooLarge
from server.limits import Limits
from server.metrics import Metrics

log = logging.getLogger(__name__)


class Service:
    """The model behind every route. Not ready until `open` is called.

    All methods are called on one event loop, `on_hang` apart.

    Args:
      limits: of its queue and requests.
      failures: ends the process; `on_fatal` is called once.
      metrics: counts requests and batches.

    Attributes:
      max_request_rows: rows that a request may have.
      memory: budget of the bodies and answers that connections hold.
      output_row_bytes: upper limit of the bytes of one row's outputs.
      startup_s: seconds by stage of the startup.
    """

    def __init__(
        self,
        limits: Limits,
        failures: Failures,
        metrics: Metrics | None = None,
    ) -> None:
        self._limits = limits
        self._failures = failures
        self.max_request_rows = min(limits.request_rows, limits.queue_rows)
        self.memory = MemoryBudget(limits.memory_bytes)
        self.metrics = metrics or Metrics()
        self.output_row_bytes = 0
        self._scheduler: BatchScheduler | None = None
        self._preparation: PreparationPool[PendingRequest] | None = None
        self.startup_s: dict[str, float] = {}
        self._compiles: Callable[[], int] = lambda: 0
        self._loop: asyncio.AbstractEventLoop  # of `open`
        # A request that is not among them has ended.
        self._requests = OpenRequests(limits.timeout_s, self._release)
        self._state = ServiceState()

    @property
    def state(self) -> State:
        """Return the state."""
        return self._state.current

    def on_state_change(self, listener: Callable[[], object]) -> None:
        """Call a function at every change of the state."""
        self._state.listeners.append(listener)

    @property
    def model(self) -> Model:
        """Return the model; where there are several devices, the first one's.

        Raises:
          NotReady: it is still being loaded.
        """
        if self._scheduler is None:
            raise NotReady("the model is still being loaded; try again shortly")
        return self._scheduler.models[0]

    @property
    def models(self) -> tuple[Model, ...]:
        """Return the model of each device; none while it is still being loaded."""
        return () if self._scheduler is None else self._scheduler.models

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded."""
        return self._scheduler is not None

    @property
    def queued_rows(self) -> int:
        """Return the number of rows that wait, for a batch or to be prepared."""
        if self._scheduler is None:
            return 0
        return self._scheduler.queue.rows + self._scheduler.queue.reserved

    @property
    def no_batching(self) -> bool:
        """Whether every batch has one task only, since rows depend on each other."""
        return self._scheduler is not None and self._scheduler.queue.no_batching

    @property
    def compiles(self) -> int:
        """Return the number of programs compiled since the model was opened."""
        return self._compiles()

    def open(
        self,
        model: Model,
        *,
        replicas: Sequence[Model] = (),
        no_batching: bool = False,
        max_running: int = 1,
    ) -> None:
        """Begin to answer with this model.

        Args:
          model: measured and validated.
          replicas: the same model on further devices of its kind, validated.
          no_batching: run every task by itself, since rows were found to depend on each other on
            this device; implied where the bundle says so.
          max_running: batches that a device has at once.
        """
        self._loop = asyncio.get_running_loop()
        longest = {axis.name: axis.sizes[-1] for axis in model.signature.axes}
        self.output_row_bytes = sum(spec.row_bytes(longest) for spec in model.signature.outputs)
        self._scheduler = BatchScheduler(
            (model, *replicas),
            self._limits,
            self.metrics,
            self._deliver,
            self,
            no_batching=no_batching or bool(model.manifest.row_mixing),
            max_running=max_running,
        )
        if model.preparer is not None:
            self._preparation = PreparationPool(
                model.preparer,
                self._limits.preparation_threads,
                WorkingMemory(self.memory),
                self._on_prepared,
                stall_s=self._limits.stall_s,
                on_stall=lambda: self.on_fatal("preparing raw inputs did not come to an end"),
            )
        self._compiles = count_compiles()
        if self.state is State.LOADING:
            self._state.change(State.READY)

    def submit(
        self,
        parts: Sequence[Checked] | RawRows,
        done: Callable[[InferenceResult | Exception], object],
        timeout_s: float | None = None,
        *,
        prefer_thread: bool = False,
    ) -> PendingRequest:
        """Queue a request; any number may be pending.

        Args:
          parts: inputs that `model.checker` accepted, rows of the same sizes together; or raw rows,
            which are prepared first.
          done: called once, later, with the result or the error: DeadlineExceeded, and rows that
            still waited are not run; InvalidInput, raw rows that do not fit; ExecutionError, the device failed; Unavailable, as below.
          timeout_s: the caller's own; the service's limit applies as well.
          prefer_thread: whether its protocol needs the loop while the batch runs; see `scheduler`.

        Returns:
          What `cancel` takes.

        Raises:
          TooLarge: more rows than a request may have.
          Unavailable: not ready, stopping, the queue is full, or no memory.
          DeadlineExceeded: the timeout is over, or too short for any batch.
        """
        scheduler = self._accepting()
        raw = parts if type(parts) is RawRows else None
        checked: Sequence[Checked] = () if raw else parts  # type: ignore[assignment]
        rows = raw.rows if raw else sum([part.rows for part in checked])
        if rows > self.max_request_rows:
            raise TooLarge(
                f"rows: expected at most {self.max_request_rows} in a request, got {rows}"
            )
        if timeout_s is not None and timeout_s < self._limits.timeout_s:
            _expect_time(timeout_s, scheduler.fastest_s if rows else 0.0)
        else:
            timeout_s = None
        request = PendingRequest(checked, scheduler.queue.max_rows, time.monotonic(), done)
        if rows > self._limits.queue_rows - scheduler.queue.rows - scheduler.queue.reserved:
            self._shed(scheduler, rows)
        if raw:
            self._count_pixels(request, rows)
            scheduler.queue.reserve(rows)
            request.reserved = rows
            request.prefer_thread = prefer_thread
        else:
            scheduler.queue.offer(request.tasks)
        self._requests.add(request, timeout_s)
        if raw:
            assert self._preparation is not None  # noqa: S101 (protocols read raw rows for it alone)
            self._preparation.submit(request, raw)
        elif rows:
            scheduler.notify(prefer_thread=prefer_thread)
        else:
            self._loop.call_soon(self._complete, request)
        return request

    def _count_pixels(self, request: PendingRequest, rows: int) -> None:
        """Count what rows will be: a file of a few bytes can become an image of many."""
        preparer = self.model.preparer
        size = rows * preparer.row_bytes if preparer else 0
        self.memory.acquire(size)
        request.counted_bytes = size

    def _on_prepared(self, request: PendingRequest, prepared: Preparation) -> None:
        """Queue the rows of a request that were prepared, unless it has ended meanwhile."""
        result, seconds = prepared
        if self._scheduler is not None and self.model.preparer is not None:
            self.metrics.panics = self.model.preparer.panics
        if request not in self._requests or self._scheduler is None:
            return
        if isinstance(result, Exception):
            self._requests.finish(request, result)
            return
        self.metrics.count_preparation(seconds, result.tokens, result.truncated)
        self.metrics.row_errors += len(result.errors)
        request.prepared = PreparationMetadata(seconds, result.tokens, result.truncated)
        request.order = None if len(result.order) == 1 and not result.errors else result.order
        request.errors = result.errors
        self._scheduler.queue.reserve(-request.reserved)
        request.begin(result.parts, time.monotonic())
        self._scheduler.queue.offer(request.tasks)
        if result.rows:
            self._scheduler.notify(prefer_thread=request.prefer_thread)
        else:
            self._complete(request)

    def cancel(self, request: PendingRequest) -> None:
        """Drop a request without calling `done`, unless it has ended."""
        self._requests.drop(request)

    def deprioritize(self, request: PendingRequest) -> None:
        """Refuse a request before others where the queue is full, unless it has ended."""
        self._requests.deprioritize(request)

    def _shed(self, scheduler: BatchScheduler, rows: int) -> None:
        """Refuse requests whose clients may have gone, the oldest first, until rows fit."""
        for request in list(self._requests.deprioritized):
            if self.queued_rows + rows <= self._limits.queue_rows:
                return
            if request.reserved or any(task in scheduler.queue for task in request.tasks):
                self._requests.finish(
                    request, Overloaded("the queue is full, and others wait for answers")
                )

    def drain(self) -> None:
        """Stop being ready, and still accept requests: load balancers need time to notice."""
        self._state.change(State.DRAINING)

    def stop(self) -> None:
        """Accept no more requests; pending ones are answered."""
        self._state.change(State.STOPPING)

    def fail(self, reason: str) -> None:
        """Refuse every request from now on, pending ones included.

        Args:
          reason: for their callers.
        """
        self._state.change(State.FAILED)
        self._requests.finish_all(NotReady(reason))

    def abandon(self) -> int:
        """Refuse the pending requests; return their number."""
        return self._requests.finish_all(Draining("the server stopped before there was an answer"))

    async def drained(self) -> None:
        """Wait until no request is pending."""
        await self._requests.drained()

    def close(self) -> None:
        """End the devices' threads after the batches that they have."""
        if self._preparation is not None:
            self._preparation.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def _accepting(self) -> BatchScheduler:
        if self.state is State.STOPPING:
            raise Draining("the server is stopping")
        if self.state is State.FAILED or self._scheduler is None:
            raise NotReady("the model is not ready")
        return self._scheduler

    def _release(self, request: PendingRequest) -> None:
        """Remove what waits of a request that has ended."""
        self.memory.release(request.counted_bytes)
        request.counted_bytes = 0
        if self._scheduler is None:
            return
        if request.reserved and self._preparation is not None:
            self._preparation.discard(request)
            self._scheduler.queue.reserve(-request.reserved)
            request.reserved = 0
        if request.remaining:
            for task in request.tasks:
                self._scheduler.queue.discard(task)

    def _complete(self, request: PendingRequest) -> None:
        """Answer a request whose tasks have all been run, unless it has ended."""
        parts, metadata = request.answer(self.model)
        if request.as_declared:
            answer = InferenceResult(parts, metadata, None, request.order, request.errors)
        else:
            policy = self._limits.nonfinite
            answer = InferenceResult(parts, metadata, policy, request.order, request.errors)
            declared = (
                is_as_declared(spec, part.outputs[spec.name])
                for spec in self.model.signature.outputs
                for part in parts
            )
            self.metrics.nonfinite += not all(declared)
        self._requests.finish(request, answer)

    def _deliver(self, result: BatchResult, batch_outputs: BatchOutputs | None) -> None:
        """Add its rows to each request of a batch."""
        batch = result.batch
        begun, padded, seconds = result.times[0], batch.bucket - batch.rows, result.seconds
        start = 0
        for task, outputs in zip(batch.tasks, result.answers, strict=True):
            _, request, index = task.payload
            waited = begun - task.arrived
            self.metrics.queued.observe(waited)
            if isinstance(outputs, Exception):
                self._requests.finish(request, outputs)
            elif request.results:  # it has not ended
                task_result = TaskResult(outputs, batch_outputs, start)
                request.add_result(
                    index, task_result, batch.bucket, padded, waited, seconds, result.device
                )
                request.as_declared = request.as_declared and result.as_declared
                if not request.remaining:
                    self._complete(request)
            start += task.rows

    def on_fatal(self, reason: str) -> None:
        """Refuse every request, since a device is lost, and end the process; see `Failures`."""
        if self.state is not State.FAILED:
            log.critical("giving up: %s", reason)
            self.fail("the device has failed")
            self._failures.on_fatal(reason)

    def on_hang(self) -> None:
        """End the process, whose loop hangs; called on the device's thread."""
        self._failures.on_hang()


def _expect_time(timeout_s: float, needed_s: float) -> None:
    if timeout_s <= 0:
        raise DeadlineExceeded("the request's time was over before it was queued")
    if timeout_s < needed_s:
        raise DeadlineExceeded(
            f"the request's time, {timeout_s * 1e3:.3g} ms, is less than a batch takes here, "
            f"{needed_s * 1e3:.3g} ms"
        )
