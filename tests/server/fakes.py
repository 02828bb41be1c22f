"""A model without jax, and a service on a loop of its own."""

import asyncio
import threading
import types

import numpy as np

from runtime.buckets import Planner
from runtime.manifest import OutputFormat
from runtime.signature import Signature, TensorSpec
from server.service import Limits, Service

SUM = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("_", 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("_",)),),
)


class FakeModel:
    """Sums rows; raises, or waits, as `before` tells it to.

    Attributes:
      ran: the (bucket, rows as lists) of each call.
    """

    def __init__(self, buckets=(1, 4), costs=None, row_mixing=()):
        self.signature = SUM
        self.manifest = types.SimpleNamespace(output_format=OutputFormat(), row_mixing=row_mixing)
        planner = Planner(costs or {b: 1.0 + b / 8 for b in buckets})
        self.groups = {(): types.SimpleNamespace(planner=planner, programs={b: b for b in buckets})}
        self.ran = []
        self.before = lambda _: None

    def run(self, program, arrays):
        """Answer as a program does: the whole bucket."""
        (rows,) = arrays
        assert len(rows) == program
        self.ran.append((program, rows.tolist()))
        self.before(rows)
        return (rows.sum(axis=1, dtype=np.float32),)

    def no_rows(self, _):
        """Answer no rows."""
        return {"y": np.empty(0, np.float32)}


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
