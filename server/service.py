"""What the server does, free of any protocol: a queue in front of a device.

The way of a request, all on one event loop but for step 4:

1. `submit` splits what is asked into tasks
2. the tasks wait in the BatchQueue, until their deadline at most
3. `_pump` takes a batch out whenever the device has room for one
4. the device's thread stages, runs and unstages it
5. `_deliver` gives each request its rows: one wake-up of the loop for the batch

Callbacks and no coroutines: a task, a future and a timer for each request cost more than all
else that is done for it here.

The loop owns the queue, the device's thread owns the device; nothing needs a lock.
"""

import asyncio
import contextlib
import dataclasses
import enum
import functools
import itertools
import logging
import time
from collections.abc import Callable, Sequence

from runtime.inputs import Checked
from runtime.model import Model
from runtime.program import count_compiles
from runtime.signature import bucket_name
from server.batching import Batch, BatchQueue
from server.device import Device, Outcome, is_finite
from server.errors import DeadlineExceeded, Draining, NotReady, TooLarge
from server.held import Held
from server.metrics import Metrics
from server.pending import Answer, Given, Nonfinite, Pending, Whole
from server.staging import count_elements

log = logging.getLogger(__name__)

# A turn of the event loop in which nothing else happens takes 5 to 15 µs.
IDLE_TURN_S = 30e-6
# Longest that a batch waits because the loop is busy.
LINGER_S = 0.005


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
      held_bytes: of bodies and messages, from when they begin to come until they are answered.
      queue_delay_s: longest that a task waits for company while the device is free.
      timeout_s: longest that a request takes, its own deadline apart.
      stall_s: longest that a batch takes before the device is given up.
      failures: batches that fail whole, one after the other, before it is given up.
      in_place_s: batches that take no longer run on the loop's own thread; see `_pump`.
      nonfinite: what JSON is given for NaN and infinity.
    """

    queue_rows: int = 4096
    request_rows: int = 1024
    held_bytes: int = 1 << 29
    queue_delay_s: float = 0.0
    timeout_s: float = 60.0
    stall_s: float = 120.0
    failures: int = 3
    in_place_s: float = 0.001
    nonfinite: Nonfinite = "null"


class Service:
    """The model behind every route. Not ready until `open` is called.

    All methods are called on one event loop.

    Args:
      limits: what it takes on.
      fatal: called once when the device is given up; the process has to end then.
      hung: called, on another thread, when the loop itself hangs in the device; has to end
        the process at once.
      metrics: what it counts.

    Attributes:
      most_rows: that a request may have.
      held: what entrances hold for it.
      listeners: called at every change of the state.
    """

    def __init__(
        self,
        limits: Limits,
        fatal: Callable[[str], None],
        hung: Callable[[], object],
        metrics: Metrics | None = None,
    ) -> None:
        self._limits = limits
        self._fatal = fatal
        self._hung = hung
        self.most_rows = min(limits.request_rows, limits.queue_rows)
        self.held = Held(limits.held_bytes)
        self.metrics = metrics or Metrics()
        self._open: _Open | None = None
        self._loop: asyncio.AbstractEventLoop  # of `open`
        self._flying: dict[Batch, asyncio.TimerHandle] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._failures = 0
        # In order of arrival. A request that is not in it has ended.
        self._requests: dict[Pending, None] = {}
        self._quiet = asyncio.Event()
        self._clock: asyncio.TimerHandle | None = None
        self._coming = False
        self._lingering: float | None = None
        self._turn = 0.0
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

    def open(self, model: Model, *, alone: bool = False, in_flight: int = 1) -> None:
        """Begin to answer with this model.

        Args:
          model: measured and proven.
          alone: run every task by itself, since rows were seen to depend on each other
            here; a bundle that says so itself needs no telling.
          in_flight: batches that the device has at once.
        """
        self._loop = loop = asyncio.get_running_loop()

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
            deliver=functools.partial(tell, self._came),
            died=functools.partial(tell, self._give_up, "the device thread died"),
            stall_s=self._limits.stall_s,
            hung=self._hung,
            threads=in_flight,
        )
        device.start()
        fastest_s = min(group.planner.cost(1) for group in model.groups.values())
        self._open = _Open(
            model,
            queue,
            device,
            in_flight,
            alone,
            not any(isinstance(d, str) for s in model.signature.outputs for d in s.shape[1:]),
            fastest_s,
            _output_row_bytes(model),
            count_compiles(),
        )
        if self.state is State.LOADING:
            self.state = State.READY

    def submit(
        self,
        parts: Sequence[Checked],
        done: Callable[[Answer | Exception], object],
        timeout_s: float | None = None,
    ) -> Pending:
        """Take a request in; any number may be under way.

        Args:
          parts: inputs that `model.checker` let pass, rows of the same sizes together.
          done: called once, later, with the answer or with why there is none: DeadlineExceeded,
            rows that still waited are not run then; ExecutionError, the device failed;
            Unavailable, as below.
          timeout_s: the caller's own; the service's limit holds beside it.

        Returns:
          What `withdraw` takes.

        Raises:
          TooLarge: more rows than a request may have.
          Unavailable: not ready, stopping, the queue is full, or no memory.
          DeadlineExceeded: the time is over, or too short for any batch.
        """
        opened = self._admit()
        rows = parts[0].rows if len(parts) == 1 else sum([part.rows for part in parts])
        if rows > self.most_rows:
            raise TooLarge(f"rows: expected at most {self.most_rows} in a request, got {rows}")
        if timeout_s is not None and timeout_s < self._limits.timeout_s:
            _expect_time(timeout_s, opened.fastest_s if rows else 0.0)
        else:
            timeout_s = None
        request = Pending(parts, opened.queue.max_rows, time.monotonic(), done)
        opened.queue.offer(request.tasks)
        self._requests[request] = None
        if timeout_s is not None:
            late = DeadlineExceeded(f"no answer within {timeout_s * 1e3:.0f} ms")
            request.timer = self._loop.call_later(timeout_s, self._end, request, late)
        elif self._clock is None:
            self._clock = self._loop.call_later(self._limits.timeout_s, self._expire)
        if rows:
            self._come_to_pump()
        else:
            self._loop.call_soon(self._complete, request)
        return request

    def withdraw(self, request: Pending) -> None:
        """Give a request up, unless it has ended: its caller waits no longer."""
        if request in self._requests:
            self._forget(request)

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
            self._end(request, Draining("the server stopped before there was an answer"))
        return len(left)

    async def drained(self) -> None:
        """Wait until every request that was taken in is answered."""
        while self._requests:
            self._quiet.clear()
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

    def _end(self, request: Pending, result: Answer | Exception) -> None:
        """Tell a request what comes of it, unless it has ended."""
        if request in self._requests:
            done = request.done
            self._forget(request)
            try:
                done(result)
            except Exception:  # the others of its batch have nothing to do with it
                log.exception("an answer could not be passed on")

    def _forget(self, request: Pending) -> None:
        """Count a request as ended; none of its tasks is left in the queue."""
        del self._requests[request]
        if request.timer is not None:
            request.timer.cancel()
        if request.left and self._open is not None:
            for task in request.tasks:
                self._open.queue.discard(task)
        request.release()
        if not self._requests:
            self._quiet.set()

    def _complete(self, request: Pending) -> None:
        """Answer a request whose tasks have all been run."""
        if request not in self._requests:
            return
        parts, evidence = request.answer(self.model)
        if request.finite:
            answer = Answer(parts, evidence)
        else:
            answer = Answer(parts, evidence, self._limits.nonfinite)
            arrays = (array for part in parts for array in part.outputs.values())
            self.metrics.nonfinite += not all(map(is_finite, arrays))
        self._end(request, answer)

    def _expire(self) -> None:
        """End what the service's own limit ends; a request came in before those behind it."""
        limit_s = self._limits.timeout_s
        now = time.monotonic()
        late = list(itertools.takewhile(lambda r: r.arrived + limit_s <= now, self._requests))
        for request in late:
            self._end(request, DeadlineExceeded(f"no answer within {limit_s * 1e3:.0f} ms"))
        first = next(iter(self._requests), None)
        left_s = limit_s if first is None else first.arrived + limit_s - time.monotonic()
        self._clock = None if first is None else self._loop.call_later(left_s, self._expire)

    def _come_to_pump(self) -> None:
        """Pump once the loop has taken in all that it has received, so that it shares a batch."""
        opened = self._open
        if opened is not None and not self._coming and len(self._flying) < opened.in_flight:
            self._coming = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Launch what is due and fits; else come back when it is.

        To hand a batch to the device's thread and back takes about as long as to read ten
        requests, and the two threads then get in each other's way. So a batch that is known to
        be quick runs right here, which keeps the loop from nothing that could not wait for it.
        """
        self._coming = False
        opened = self._open
        if opened is None:
            return
        quick = opened.fastest_s <= self._limits.in_place_s and not self._flying
        if quick and opened.queue.rows < opened.queue.max_rows and self._lingers():
            self._come_to_pump()
            return
        while len(self._flying) < opened.in_flight:
            now = time.monotonic()
            due = opened.queue.due_in(now)
            if due is None:
                break
            if due > 0.0:
                if self._wake is None:
                    self._wake = self._loop.call_later(due, self._woken)
                return
            batch = opened.queue.take(now)
            if batch is None:
                break
            if not self._flying and opened.seconds(batch) <= self._limits.in_place_s:
                self._run_here(opened.device, batch)
                return
            stall = self._loop.call_later(self._limits.stall_s, self._give_up, "the device hangs")
            self._flying[batch] = stall
            opened.device.submit(batch)

    def _run_here(self, device: Device, batch: Batch) -> None:
        try:
            outcome = device.run_here(batch)
        except BaseException:  # as on the device's thread: whatever it is, the device is lost
            log.critical("the device died", exc_info=True)
            self._give_up("the device died")
            return
        self._deliver(outcome)
        self._come_to_pump()

    def _lingers(self) -> bool:
        """Say whether a batch that would run in place has to wait for more to be read.

        Nothing is read while it runs, so it waits while the loop is busy: a turn of the loop in
        which something came takes longer than one that only comes back here. gRPC hands over a
        single event a turn, and a call makes four.
        """
        now = time.monotonic()
        if self._lingering is None:
            self._lingering = now
        elif now - self._turn < IDLE_TURN_S or now - self._lingering > LINGER_S:
            self._lingering = None
            return False
        self._turn = now
        return True

    def _woken(self) -> None:
        self._wake = None
        self._pump()

    def _came(self, outcome: Outcome) -> None:
        """Deliver what the device's thread has done; called on the loop."""
        self._flying.pop(outcome.batch).cancel()
        self._deliver(outcome)
        self._pump()

    def _deliver(self, outcome: Outcome) -> None:
        """Give each request of a batch its rows."""
        batch = outcome.batch
        begun, padded = outcome.times[0], batch.bucket - batch.rows
        whole = self._whole(outcome)
        start = 0
        for task, outputs in zip(batch.tasks, outcome.answers, strict=True):
            _, request, index = task.payload
            waited = begun - task.arrived
            self.metrics.queued.observe(waited)
            if isinstance(outputs, Exception):
                self._end(request, outputs)
            elif request in self._requests:
                given = Given(outputs, whole, start)
                request.give(index, given, batch.bucket, padded, waited, outcome.seconds)
                request.finite = request.finite and outcome.finite
                if not request.left:
                    self._complete(request)
            start += task.rows
        self._count(outcome)
        self._failures = self._failures + 1 if outcome.failed else 0
        if self._failures >= self._limits.failures:
            self._give_up(f"{self._failures} batches failed one after the other")

    def _whole(self, outcome: Outcome) -> Whole | None:
        """Give a batch's outputs for all of its tasks, if they can be read row for row."""
        opened = self._open
        if opened is None or not outcome.finite or not opened.by_row:
            return None
        rows = [output[: outcome.batch.rows] for output in outcome.outputs]
        return Whole(dict(zip(opened.model.output_names, rows, strict=True)))

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
            for request in list(self._requests):
                self._end(request, NotReady("the device has failed"))
            self._fatal(reason)


@dataclasses.dataclass(frozen=True, slots=True)
class _Open:
    """What there is once a model is open."""

    model: Model
    queue: BatchQueue
    device: Device
    in_flight: int
    alone: bool
    by_row: bool  # a row's outputs have the same shape, whatever batch it is in
    fastest_s: float
    output_row_bytes: int
    compiles: Callable[[], int]

    def seconds(self, batch: Batch) -> float:
        """Give the time that a batch's program took when it was measured."""
        return self.model.groups[batch.sizes].planner.costs[batch.bucket]


def _output_row_bytes(model: Model) -> int:
    longest = {axis.name: axis.sizes[-1] for axis in model.signature.axes}
    return sum(spec.row_bytes(longest) for spec in model.signature.outputs)


def _expect_time(timeout_s: float, needed_s: float) -> None:
    if timeout_s <= 0:
        raise DeadlineExceeded("the request's time was over before it was queued")
    if timeout_s < needed_s:
        raise DeadlineExceeded(
            f"the request's time, {timeout_s * 1e3:.3g} ms, is less than a batch takes here, "
            f"{needed_s * 1e3:.3g} ms"
        )
