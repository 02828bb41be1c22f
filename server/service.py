"""What the server does, free of any protocol: a queue in front of a device.

The way of a request, all on one event loop but for step 4:

1. `answer` holds the inputs against the signature and splits them into tasks
2. the tasks wait in the BatchQueue, until their deadline at most
3. `_pump` takes a batch out whenever the device has room for one
4. the device's thread stages, runs and unstages it
5. `_deliver` gives each request its rows: one wake-up of the loop for the batch

The loop owns the queue, the device's thread owns the device; nothing needs a lock.
"""

import asyncio
import contextlib
import dataclasses
import enum
import functools
import logging
import time
from collections.abc import Callable, Mapping

import numpy as np

from runtime.inputs import Checked, Checker
from runtime.model import Model
from runtime.tensors import Array
from server.batching import Batch, BatchQueue, Task
from server.device import Device, Outcome
from server.errors import DeadlineExceeded, Draining, NotReady, TooLarge

log = logging.getLogger(__name__)


class State(enum.Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """How an answer came about.

    Attributes:
      bucket: batch size of the program that answered (the last, if several did).
      padded_rows: rows of padding in its batch.
      queue_s: longest wait of the request's rows.
      compute_s: time on the device's thread of the batches that answered.
    """

    bucket: int
    padded_rows: int
    queue_s: float
    compute_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Outputs by name, row for row, and how they came about."""

    outputs: dict[str, Array]
    evidence: Evidence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the service takes on.

    Attributes:
      queue_rows: rows that may wait.
      request_rows: rows of one request, which has to fit in the queue as well.
      queue_delay_s: longest that a task waits for company while the device is free.
      timeout_s: longest that a request takes, its own deadline apart.
      stall_s: longest that a batch takes before the device is given up.
      in_flight: batches that the device's thread has at once.
      failures: batches that fail whole, one after the other, before it is given up.
    """

    queue_rows: int = 4096
    request_rows: int = 1024
    queue_delay_s: float = 0.0
    timeout_s: float = 60.0
    stall_s: float = 120.0
    in_flight: int = 1
    failures: int = 3


@dataclasses.dataclass(slots=True, eq=False)
class _Request:
    """A request on its way: its tasks, what they have given so far, and its future.

    The payload of each of its tasks is (arrays, request, index). Once it has ended, no
    matter how, none of its tasks is left in the queue.
    """

    future: asyncio.Future[None]
    queue: BatchQueue
    tasks: list[Task]
    parts: list[tuple[Array, ...]]
    left: int
    evidence: Evidence = Evidence(0, 0, 0.0, 0.0)

    def give(self, index: int, outputs: tuple[Array, ...], evidence: Evidence) -> None:
        """Take one task's outputs; the last one completes the request."""
        self.parts[index] = outputs
        self.left -= 1
        self.evidence = Evidence(
            evidence.bucket,
            evidence.padded_rows,
            max(self.evidence.queue_s, evidence.queue_s),
            self.evidence.compute_s + evidence.compute_s,
        )
        if not self.left and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        """End with an error, unless it ended already."""
        if not self.future.done():
            self.future.set_exception(error)
        self.withdraw()

    def withdraw(self) -> None:
        """Take what still waits out of the queue."""
        for task in self.tasks:
            self.queue.discard(task)


class Service:
    """The model behind every route. Not ready until `open` is called.

    All methods are called on one event loop.

    Args:
      limits: what it takes on.
      fatal: called once when the device is given up; the process has to end then.
    """

    def __init__(self, limits: Limits, fatal: Callable[[str], None]) -> None:
        self._limits = limits
        self._fatal = fatal
        self._open: _Open | None = None
        self._flying: dict[Batch, asyncio.TimerHandle] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._failures = 0
        self._requests: set[_Request] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.state = State.LOADING

    @property
    def model(self) -> Model:
        """Give the model.

        Raises:
          NotReady: it is still being loaded.
        """
        if self._open is None:
            raise NotReady("the model is still being loaded; try again shortly")
        return self._open.model

    def open(self, model: Model) -> None:
        """Begin to answer with this model."""
        loop = asyncio.get_running_loop()

        def tell(call: Callable[..., None], what: object) -> None:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call, what)

        queue = BatchQueue(
            {sizes: group.planner for sizes, group in model.groups.items()},
            capacity_rows=self._limits.queue_rows,
            max_delay_s=self._limits.queue_delay_s,
            alone=bool(model.manifest.row_mixing),
        )
        device = Device(
            lambda batch, arrays: model.run(
                model.groups[batch.sizes].programs[batch.bucket], arrays
            ),
            model.signature,
            deliver=functools.partial(tell, self._deliver),
            died=functools.partial(tell, self._give_up, "the device thread died"),
        )
        device.start()
        self._open = _Open(model, Checker(model.signature), queue, device)
        if self.state is State.LOADING:
            self.state = State.READY

    async def answer(self, inputs: Mapping[str, object], timeout_s: float | None = None) -> Answer:
        """Answer rows; any number of calls may be under way. Cancelling gives its rows up.

        Args:
          inputs: name to array, as `Model.predict` takes them.
          timeout_s: the caller's own; the service's limit holds beside it.

        Raises:
          InvalidInput: the inputs do not fit.
          TooLarge: more rows than a request may have.
          Unavailable: not ready, stopping, the queue is full, or no memory.
          DeadlineExceeded: the time is over; rows that still waited are not run.
          ExecutionError: the device failed.
        """
        opened = self._admit()
        checked = opened.checker.check(inputs)
        most = min(self._limits.request_rows, self._limits.queue_rows)
        if checked.rows > most:
            raise TooLarge(f"rows: expected at most {most} in a request, got {checked.rows}")
        limit = self._limits.timeout_s
        limit = limit if timeout_s is None else min(limit, timeout_s)
        if limit <= 0:
            raise DeadlineExceeded("the request's time was over before it was queued")
        loop = asyncio.get_running_loop()
        request = self._queue(opened, checked, loop)
        timer = loop.call_later(limit, _expire, request, limit)
        self._requests.add(request)
        self._quiet.clear()
        try:
            self._pump()
            if request.left:
                await request.future
        finally:
            timer.cancel()
            if request.left:
                request.withdraw()
            self._requests.discard(request)
            if not self._requests:
                self._quiet.set()
        return Answer(_joined(opened.model, checked, request.parts), request.evidence)

    def drain(self) -> None:
        """Take no more requests; those that are in are answered."""
        if self.state in (State.LOADING, State.READY):
            self.state = State.DRAINING

    async def drained(self) -> None:
        """Wait until every request that was taken in is answered."""
        await self._quiet.wait()

    def close(self) -> None:
        """End the device's thread after the batches that it has."""
        if self._open is not None:
            self._open.device.close()

    def _admit(self) -> "_Open":
        if self.state is State.DRAINING:
            raise Draining("the server is stopping")
        if self.state is State.FAILED or self._open is None:
            raise NotReady("the model is not ready")
        return self._open

    def _queue(
        self, opened: "_Open", checked: Checked, loop: asyncio.AbstractEventLoop
    ) -> _Request:
        """Split a request into tasks of at most the largest bucket, and queue all or none."""
        most = opened.queue.max_rows
        starts = range(0, checked.rows, most)
        request = _Request(loop.create_future(), opened.queue, [], [()] * len(starts), len(starts))
        now = time.monotonic()
        for index, start in enumerate(starts):
            rows = min(most, checked.rows - start)
            arrays = checked.arrays
            if len(starts) > 1:
                arrays = tuple(None if a is None else a[start : start + rows] for a in arrays)
            request.tasks.append(Task(rows, checked.sizes, (arrays, request, index), now))
        opened.queue.offer(request.tasks)
        return request

    def _pump(self) -> None:
        """Launch what is due and fits; else come back when it is."""
        opened = self._open
        if opened is None:
            return
        loop = asyncio.get_running_loop()
        while len(self._flying) < self._limits.in_flight:
            now = time.monotonic()
            due = opened.queue.due_in(now)
            if due is None:
                break
            if due > 0.0:
                if self._wake is None:
                    self._wake = loop.call_later(due, self._woken)
                return
            batch = opened.queue.take(now)
            if batch is None:
                break
            stall = loop.call_later(self._limits.stall_s, self._give_up, "the device hangs")
            self._flying[batch] = stall
            opened.device.submit(batch)

    def _woken(self) -> None:
        self._wake = None
        self._pump()

    def _deliver(self, outcome: Outcome) -> None:
        """Give each request its rows; called on the loop for every batch."""
        self._flying.pop(outcome.batch).cancel()
        batch = outcome.batch
        for task, answer in zip(batch.tasks, outcome.answers, strict=True):
            _, request, index = task.payload
            if isinstance(answer, Exception):
                request.fail(answer)
            else:
                padded = batch.bucket - batch.rows
                waited = outcome.started - task.arrived
                request.give(index, answer, Evidence(batch.bucket, padded, waited, outcome.seconds))
        self._failures = self._failures + 1 if outcome.failed else 0
        if self._failures >= self._limits.failures:
            self._give_up(f"{self._failures} batches failed one after the other")
        self._pump()

    def _give_up(self, reason: str) -> None:
        """Fail: refuse every request, those that are in too, and have the process ended."""
        if self.state is not State.FAILED:
            self.state = State.FAILED
            log.critical("giving up: %s", reason)
            for request in self._requests:
                request.fail(NotReady("the device has failed"))
            self._fatal(reason)


@dataclasses.dataclass(frozen=True, slots=True)
class _Open:
    """What there is once a model is open."""

    model: Model
    checker: Checker
    queue: BatchQueue
    device: Device


def _expire(request: _Request, seconds: float) -> None:
    request.fail(DeadlineExceeded(f"no answer within {seconds * 1e3:.0f} ms"))


def _joined(model: Model, checked: Checked, parts: list[tuple[Array, ...]]) -> dict[str, Array]:
    names = (spec.name for spec in model.signature.outputs)
    if len(parts) == 1:
        return dict(zip(names, parts[0], strict=True))
    if not parts:
        return model.no_rows(checked.sizes)
    joined = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    return dict(zip(names, joined, strict=True))
