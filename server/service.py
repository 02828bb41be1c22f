"""What the server does, free of any protocol: a queue in front of a device.

The way of a request, all on one event loop but for step 4:

1. `submit` splits what is asked into tasks
2. the tasks wait in the BatchQueue, until their deadline at most
3. the `Pump` takes a batch out whenever the device has room for one
4. the device's thread stages, runs and unstages it
5. `_deliver` gives each request its rows: one wake-up of the loop for the batch

Callbacks and no coroutines: a task, a future and a timer for each request cost more than all
else that is done for it here.

The loop owns the queue, the device's thread owns the device; nothing needs a lock.
"""

import asyncio
import enum
import itertools
import logging
import time
from collections.abc import Callable, Sequence

from runtime.inputs import Checked
from runtime.model import Model
from runtime.program import count_compiles
from server.device import Outcome, is_as_declared
from server.errors import DeadlineExceeded, Draining, NotReady, Overloaded, TooLarge
from server.held import Held
from server.limits import Limits
from server.metrics import Metrics
from server.pending import Answer, Given, Pending, Whole
from server.pump import Pump

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
      output_row_bytes: the most that a row's outputs have.
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
        self.output_row_bytes = 0
        self._pump: Pump | None = None
        self._compiles: Callable[[], int] = lambda: 0
        self._loop: asyncio.AbstractEventLoop  # of `open`
        # In order of arrival. A request that is not in it has ended.
        self._requests: dict[Pending, None] = {}
        # Those of them whose clients may have gone, which make way for others.
        self._deprioritized: dict[Pending, None] = {}
        self._quiet = asyncio.Event()
        self._clock: asyncio.TimerHandle | None = None
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
        if self._pump is None:
            raise NotReady("the model is still being loaded; try again shortly")
        return self._pump.model

    @property
    def loaded(self) -> bool:
        """Say whether there is a model."""
        return self._pump is not None

    @property
    def queued_rows(self) -> int:
        """Give the rows that wait."""
        return 0 if self._pump is None else self._pump.queue.rows

    @property
    def alone(self) -> bool:
        """Say whether batches hold one task, since rows depend on each other."""
        return self._pump is not None and self._pump.alone

    @property
    def compiles(self) -> int:
        """Give the number of programs compiled since the model was opened."""
        return self._compiles()

    def open(self, model: Model, *, alone: bool = False, in_flight: int = 1) -> None:
        """Begin to answer with this model.

        Args:
          model: measured and proven.
          alone: run every task by itself, since rows were seen to depend on each other
            here; a bundle that says so itself needs no telling.
          in_flight: batches that the device has at once.
        """
        self._loop = asyncio.get_running_loop()
        longest = {axis.name: axis.sizes[-1] for axis in model.signature.axes}
        self.output_row_bytes = sum(spec.row_bytes(longest) for spec in model.signature.outputs)
        self._pump = Pump(
            model,
            self._limits,
            self.metrics,
            self._deliver,
            self._give_up,
            self._hung,
            alone=alone or bool(model.manifest.row_mixing),
            in_flight=in_flight,
        )
        self._compiles = count_compiles()
        if self.state is State.LOADING:
            self.state = State.READY

    def submit(
        self,
        parts: Sequence[Checked],
        done: Callable[[Answer | Exception], object],
        timeout_s: float | None = None,
        *,
        off_loop: bool = False,
    ) -> Pending:
        """Take a request in; any number may be under way.

        Args:
          parts: inputs that `model.checker` let pass, rows of the same sizes together.
          done: called once, later, with the answer or with why there is none: DeadlineExceeded,
            rows that still waited are not run then; ExecutionError, the device failed;
            Unavailable, as below.
          timeout_s: the caller's own; the service's limit holds beside it.
          off_loop: whether its entrance needs the loop while it is run; see `Pump`.

        Returns:
          What `withdraw` takes.

        Raises:
          TooLarge: more rows than a request may have.
          Unavailable: not ready, stopping, the queue is full, or no memory.
          DeadlineExceeded: the time is over, or too short for any batch.
        """
        pump = self._admit()
        rows = parts[0].rows if len(parts) == 1 else sum([part.rows for part in parts])
        if rows > self.most_rows:
            raise TooLarge(f"rows: expected at most {self.most_rows} in a request, got {rows}")
        if timeout_s is not None and timeout_s < self._limits.timeout_s:
            _expect_time(timeout_s, pump.fastest_s if rows else 0.0)
        else:
            timeout_s = None
        request = Pending(parts, pump.queue.max_rows, time.monotonic(), done)
        if rows > self._limits.queue_rows - pump.queue.rows:
            self._make_room(pump, rows)
        pump.queue.offer(request.tasks)
        self._requests[request] = None
        if timeout_s is not None:
            late = DeadlineExceeded(f"no answer within {timeout_s * 1e3:.0f} ms")
            request.timer = self._loop.call_later(timeout_s, self._end, request, late)
        elif self._clock is None:
            self._clock = self._loop.call_later(self._limits.timeout_s, self._expire)
        if rows:
            pump.come(off_loop=off_loop)
        else:
            self._loop.call_soon(self._complete, request)
        return request

    def withdraw(self, request: Pending) -> None:
        """Give a request up, unless it has ended: its caller waits no longer."""
        if request in self._requests:
            self._forget(request)

    def deprioritize(self, request: Pending) -> None:
        """Have a request make way for others where the queue is full, unless it has ended."""
        if request in self._requests:
            self._deprioritized[request] = None

    def _make_room(self, pump: Pump, rows: int) -> None:
        """Refuse requests whose clients may have gone, the oldest first, until rows fit."""
        for request in list(self._deprioritized):
            if pump.queue.rows + rows <= self._limits.queue_rows:
                return
            if any(task in pump.queue for task in request.tasks):
                self._end(request, Overloaded("the queue is full, and others wait for answers"))

    def drain(self) -> None:
        """Be ready no more, and answer on: whoever sends requests needs time to notice."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING

    def stop(self) -> None:
        """Take no more requests; those that are in are answered."""
        if self.state is not State.FAILED:
            self.state = State.STOPPING

    def fail(self, reason: str) -> None:
        """Be ready no more, and refuse every request, those that are in too.

        Args:
          reason: what their callers are told.
        """
        self.state = State.FAILED
        for request in list(self._requests):
            self._end(request, NotReady(reason))

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
        if self._pump is not None:
            self._pump.close()

    def _admit(self) -> Pump:
        if self.state is State.STOPPING:
            raise Draining("the server is stopping")
        if self.state is State.FAILED or self._pump is None:
            raise NotReady("the model is not ready")
        return self._pump

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
        self._deprioritized.pop(request, None)
        if request.timer is not None:
            request.timer.cancel()
        if request.left and self._pump is not None:
            for task in request.tasks:
                self._pump.queue.discard(task)
        request.release()
        if not self._requests:
            self._quiet.set()

    def _complete(self, request: Pending) -> None:
        """Answer a request whose tasks have all been run."""
        if request not in self._requests:
            return
        parts, evidence = request.answer(self.model)
        if request.as_declared:
            answer = Answer(parts, evidence)
        else:
            answer = Answer(parts, evidence, self._limits.nonfinite)
            declared = (
                is_as_declared(spec, part.outputs[spec.name])
                for spec in self.model.signature.outputs
                for part in parts
            )
            self.metrics.nonfinite += not all(declared)
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

    def _deliver(self, outcome: Outcome, whole: Whole | None) -> None:
        """Give each request of a batch its rows."""
        batch = outcome.batch
        begun, padded = outcome.times[0], batch.bucket - batch.rows
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
                request.as_declared = request.as_declared and outcome.as_declared
                if not request.left:
                    self._complete(request)
            start += task.rows

    def _give_up(self, reason: str) -> None:
        """Fail for want of a device, and have the process ended."""
        if self.state is not State.FAILED:
            log.critical("giving up: %s", reason)
            self.fail("the device has failed")
            self._fatal(reason)


def _expect_time(timeout_s: float, needed_s: float) -> None:
    if timeout_s <= 0:
        raise DeadlineExceeded("the request's time was over before it was queued")
    if timeout_s < needed_s:
        raise DeadlineExceeded(
            f"the request's time, {timeout_s * 1e3:.3g} ms, is less than a batch takes here, "
            f"{needed_s * 1e3:.3g} ms"
        )
