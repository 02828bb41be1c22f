"""A model without jax, a gate that holds it, and a service on a loop of its own."""

import asyncio
import contextlib
import threading
import types

import numpy as np

from runtime.buckets import Planner
from runtime.manifest import OutputFormat
from runtime.signature import Axis, Signature, TensorSpec
from server.service import Limits, Service

SUM = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("_", 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("_",)),),
)
ECHO = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), pad=9),
        TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True),
    ),
    outputs=(
        TensorSpec(name="echo", dtype="int32", shape=("_", "seq")),
        TensorSpec(name="total", dtype="int32", shape=("_",)),
    ),
    axes=(Axis(name="seq", sizes=(4, 8)),),
)


class FakeModel:
    """Sums rows, or echoes tokens and sums them; raises, or waits, as `before` tells it to.

    Attributes:
      ran: the (bucket, rows as lists) of each call.
    """

    def __init__(self, buckets=(1, 4), costs=None, row_mixing=(), signature=SUM):
        self.signature = signature
        self.manifest = types.SimpleNamespace(output_format=OutputFormat(), row_mixing=row_mixing)
        planner = Planner(costs or {b: 1.0 + b / 8 for b in buckets})
        sizes = [(size,) for axis in signature.axes for size in axis.sizes] or [()]
        self.groups = {
            s: types.SimpleNamespace(planner=planner, programs={b: b for b in buckets})
            for s in sizes
        }
        self.ran = []
        self.before = lambda _: None

    def run(self, program, arrays):
        """Answer as a program does: the whole bucket."""
        rows = arrays[0]
        assert all(len(array) == program for array in arrays)
        self.ran.append((program, rows.tolist()))
        self.before(rows)
        if self.signature is SUM:
            return (rows.sum(axis=1, dtype=np.float32),)
        ids, mask = arrays
        return ids, (ids * mask).sum(axis=1, dtype=np.int32)

    def no_rows(self, sizes):
        """Answer no rows."""
        named = dict(zip((axis.name for axis in self.signature.axes), sizes, strict=True))
        return {
            spec.name: np.empty(spec.concrete(0, named), spec.dtype)
            for spec in self.signature.outputs
        }


class Gate:
    """Holds a model before each run; for `FakeModel.before`."""

    def __init__(self):
        self._reached = threading.Semaphore(0)
        self._opened = threading.Semaphore(0)

    def __call__(self, _):
        """Wait on the device's thread until the gate is opened."""
        self._reached.release()
        assert self._opened.acquire(timeout=30)

    async def reached(self):
        """Wait until the device stands before the gate."""
        assert await asyncio.to_thread(self._reached.acquire, timeout=30)

    def open(self, runs=1):
        """Let the device through, for so many runs."""
        self._opened.release(runs)


@contextlib.asynccontextmanager
async def serving(model, fatal=None, **limits):
    """Give a service on this loop, ready with a model; its device ends with it."""
    service = Service(Limits(**limits), fatal or (lambda _: None))
    service.open(model)
    try:
        yield service
    finally:
        service.close()


class Running:
    """A service on an event loop in a thread, for tests that are not asynchronous.

    Attributes:
      service: the service.
      gave_up: why the device was given up, as often as it was.
    """

    def __init__(self, **limits):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.gave_up = []
        self.service = Service(Limits(**limits), self.gave_up.append)

    def wait(self, call):
        """Run a coroutine on the loop and give its result."""
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(30)

    def open(self, model):
        """Open a model on the loop."""

        async def open_there():
            self.service.open(model)

        self.wait(open_there())

    def close(self):
        """End the device's thread and the loop."""
        self.service.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
