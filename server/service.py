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
from collections.abc import Callable

import numpy as np

from runtime.inputs import Checked
from runtime.model import Model
from runtime.program import count_compiles
from runtime.signature import bucket_name
from server.batching import Batch, BatchQueue, Task
from server.device import Device, Outcome
from server.errors import DeadlineExceeded, Draining, NotReady, TooLarge
from server.metrics import Metrics
from server.pending import Answer, Nonfinite, Pending, joined
from server.staging import count_elements

log = logging.getLogger(__name__)


class State(enum.Enum):
    """Where the server is in its life.

    A draining one answers on, but asks to be sent nothing more; a stopping one answers
    only what it has.
    """

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


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
      nonfinite: what JSON is given for NaN and infinity.
    """

    queue_rows: int = 4096
    request_rows: int = 1024
    queue_delay_s: float = 0.0
    timeout_s: float = 60.0
    stall_s: float = 120.0
    in_flight: int = 1
    failures: int = 3
    nonfinite: Nonfinite = "null"


class Service:
    """The model behind every route. Not ready until `open` is called.

    All methods are called on one event loop.

    Args:
      limits: what it takes on.
      fatal: called once when the device is given up; the process has to end then.
      metrics: what it counts.

    Attributes:
      most_rows: that a request may have.
      listeners: called at every change of the state.
    """

    def __init__(
        self, limits: Limits, fatal: Callable[[str], None], metrics: Metrics | None = None
    ) -> None:
        self._limits = limits
        self._fatal = fatal
        self.most_rows = min(limits.request_rows, limits.queue_rows)
        self.metrics = metrics or Metrics()
        self._open: _Open | None = None
        self._flying: dict[Batch, asyncio.TimerHandle] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._failures = 0
        self._requests: set[Pending] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._state = State.LOADING
        self.listeners: list[Callable[[], object]] = []

    @property
    def state(self) -> State:
        """Give where the server is in its life."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        for listener in self.listeners:
            listener()

    @property
    def model(self) -> Model:
        """Give the model.

        Raises:
          NotReady: it is still being loaded.
        """
        if self._open is None:
            raise NotReady("the model is still being loaded; try again shortly")
        return self._open.model

    @property
    def loaded(self) -> bool:
        """Say whether there is a model."""
        return self._open is not None

    @property
    def output_row_bytes(self) -> int:
        """Give the most bytes that a row's outputs have."""
        return 0 if self._open is None else self._open.output_row_bytes

    @property
    def queued_rows(self) -> int:
        """Give the rows that wait."""
        return 0 if self._open is None else self._open.queue.rows

    @property
    def alone(self) -> bool:
        """Say whether batches hold one task, since rows depend on each other."""
        return self._open is not None and self._open.alone

    @property
    def compiles(self) -> int:
        """Give the number of programs compiled since the model was opened."""
        return 0 if self._open is None else self._open.compiles()

    def open(self, model: Model, *, alone: bool = False) -> None:
        """Begin to answer with this model.

        Args:
          model: measured and proven.
          alone: run every task by itself, since rows were seen to depend on each other
            here; a bundle that says so itself needs no telling.
        """
        loop = asyncio.get_running_loop()

        def tell(call: Callable[..., None], what: object) -> None:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call, what)

        alone = alone or bool(model.manifest.row_mixing)
        queue = BatchQueue(
            {sizes: group.planner for sizes, group in model.groups.items()},
            capacity_rows=self._limits.queue_rows,
            max_delay_s=self._limits.queue_delay_s,
            alone=alone,
        )
        device = Device(
            lambda batch, arrays: model.run(
                model.groups[batch.sizes].programs[batch.bucket], arrays
            ),
            model.signature,
            canary=model.canary,
            deliver=functools.partial(tell, self._deliver),
            died=functools.partial(tell, self._give_up, "the device thread died"),
        )
        device.start()
        fastest_s = min(group.planner.cost(1) for group in model.groups.values())
        self._open = _Open(
            model, queue, device, alone, fastest_s, _output_row_bytes(model), count_compiles()
        )
        if self.state is State.LOADING:
            self.state = State.READY

    async def answer(self, checked: Checked, timeout_s: float | None = None) -> Answer:
        """Answer rows; any number of calls may be under way. Cancelling gives its rows up.

        Args:
          checked: inputs that `model.checker` let pass.
          timeout_s: the caller's own; the service's limit holds beside it.

        Raises:
          TooLarge: more rows than a request may have.
          Unavailable: not ready, stopping, the queue is full, or no memory.
          DeadlineExceeded: the time is over; rows that still waited are not run.
          ExecutionError: the device failed.
        """
        opened = self._admit()
        if checked.rows > self.most_rows:
            raise TooLarge(
                f"rows: expected at most {self.most_rows} in a request, got {checked.rows}"
            )
        limit = self._limits.timeout_s
        limit = limit if timeout_s is None else min(limit, timeout_s)
        if limit <= 0:
            raise DeadlineExceeded("the request's time was over before it was queued")
        needed = opened.fastest_s if checked.rows else 0.0
        if limit < needed:
            raise DeadlineExceeded(
                f"the request's time, {limit * 1e3:.3g} ms, is less than a batch takes here, "
                f"{needed * 1e3:.3g} ms"
            )
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
        outputs = joined(opened.model, checked, request.parts)
        if request.finite:
            return Answer(outputs, request.evidence)
        self.metrics.nonfinite += any(not np.isfinite(o).all() for o in outputs.values())
        return Answer(outputs, request.evidence, self._limits.nonfinite)

    def drain(self) -> None:
        """Be ready no more, and answer on: whoever sends requests needs time to notice."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def stop(self) -> None:
        """Take no more requests; those that are in are answered."""
        if self.state is not State.FAILED:
            self.state = State.STOPPING

    def abandon(self) -> int:
        """Refuse the requests that are still in; returns how many there were."""
        left = list(self._requests)
        for request in left:
            request.fail(Draining("the server stopped before there was an answer"))
        return len(left)

    async def drained(self) -> None:
        """Wait until every request that was taken in is answered."""
        await self._quiet.wait()

    def close(self) -> None:
        """End the device's thread after the batches that it has."""
        if self._open is not None:
            self._open.device.close()

    def _admit(self) -> "_Open":
        if self.state is State.STOPPING:
            raise Draining("the server is stopping")
        if self.state is State.FAILED or self._open is None:
            raise NotReady("the model is not ready")
        return self._open

    def _queue(self, opened: "_Open", checked: Checked, loop: asyncio.AbstractEventLoop) -> Pending:
        """Split a request into tasks of at most the largest bucket, and queue all or none."""
        most = opened.queue.max_rows
        count = -(-checked.rows // most)
        request = Pending(loop.create_future(), opened.queue, [], [()] * count, count)
        now = time.monotonic()
        if count == 1:
            payload = (checked.arrays, request, 0)
            request.tasks.append(Task(checked.rows, checked.sizes, payload, now))
        else:
            for index, start in enumerate(range(0, checked.rows, most)):
                rows = min(most, checked.rows - start)
                arrays = tuple(
                    None if a is None else a[start : start + rows] for a in checked.arrays
                )
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
        begun = outcome.times[0]
        for task, answer in zip(batch.tasks, outcome.answers, strict=True):
            _, request, index = task.payload
            self.metrics.queued.observe(begun - task.arrived)
            if isinstance(answer, Exception):
                request.fail(answer)
            else:
                request.give(index, answer, outcome, begun - task.arrived)
        self._count(outcome)
        self._failures = self._failures + 1 if outcome.failed else 0
        if self._failures >= self._limits.failures:
            self._give_up(f"{self._failures} batches failed one after the other")
        self._pump()

    def _count(self, outcome: Outcome) -> None:
        batch, signature = outcome.batch, self.model.signature
        name = bucket_name(signature, batch.sizes, batch.bucket)
        self.metrics.batch(name, batch.bucket, batch.rows, outcome.times)
        self.metrics.padding(*count_elements(signature, batch))

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
    queue: BatchQueue
    device: Device
    alone: bool
    fastest_s: float
    output_row_bytes: int
    compiles: Callable[[], int]


def _output_row_bytes(model: Model) -> int:
    longest = {axis.name: axis.sizes[-1] for axis in model.signature.axes}
    return sum(spec.row_bytes(longest) for spec in model.signature.outputs)


def _expire(request: Pending, seconds: float) -> None:
    request.fail(DeadlineExceeded(f"no answer within {seconds * 1e3:.0f} ms"))
