"""A model without jax, a gate that blocks it, and a service on a loop of its own."""

import asyncio
import contextlib
import re
import threading
import types

import numpy as np

from runtime.buckets import Planner
from runtime.entries import OutputFormat
from runtime.inputs import Checker
from runtime.signature import DTYPE_BYTES, Axis, Signature, TensorSpec
from runtime.tensors import numpy_dtype
from server.batching.service import Service
from server.limits import Limits

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


# An input of each dtype, and an output that is the same.
EVERY = Signature(
    inputs=tuple(TensorSpec(name=d, dtype=d, shape=("_", 2)) for d in DTYPE_BYTES),
    outputs=tuple(TensorSpec(name=f"{d}_out", dtype=d, shape=("_", 2)) for d in DTYPE_BYTES),
)


def signature(inputs, outputs, **axes):
    """Make a signature of tensors as messages write them: `x:float32[_, 2]`."""

    def spec(text):
        name, dtype, dims = re.fullmatch(r"(\w+):(\w+)\[(.+)\]", text).groups()
        shape = (int(dim) if dim.isdecimal() else dim for dim in dims.split(", "))
        return TensorSpec(name=name, dtype=dtype, shape=tuple(shape))

    return Signature(
        inputs=tuple(map(spec, inputs)),
        outputs=tuple(map(spec, outputs)),
        axes=tuple(Axis(name=name, sizes=sizes) for name, sizes in axes.items()),
    )


class FakeModel:
    """Sums rows, or echoes tokens and sums them, or runs the function that it is constructed with.

    Raises, or waits, as `before` does.

    Attributes:
      ran: the (bucket, rows as lists) of each call.
      broken: the error that the device answers everything with, if it is broken.
      loops: whether how long its programs run depends on their inputs.
    """

    def __init__(
        self,
        buckets=(1, 4),
        costs=None,
        row_mixing=(),
        signature=SUM,
        function=None,
        output_format=None,
        device_name="cpu:0",
    ):
        self.function = function
        self.signature = signature
        self.checker = Checker(signature)
        self.preparer = None
        self.output_names = tuple(spec.name for spec in signature.outputs)
        self.manifest = types.SimpleNamespace(
            name="fake",
            version="1",
            signature=signature,
            output_format=output_format or OutputFormat(),
            row_mixing=row_mixing,
            buckets=buckets,
            exporter={"jax": "0.12.0.1", "jaxlib": "0.12.0.1"},
            refreshed_from=(),
            preprocess=(),
            passthrough=(),
            page_sample=False,
        )
        self.bundle = types.SimpleNamespace(digest="0" * 64)
        self.device = types.SimpleNamespace(memory_stats=lambda: None)
        self.platform = "cpu"
        self.device_name = device_name
        costs = costs or {b: 1.0 + b / 8 for b in buckets}
        seconds = {b: cost * 1e-6 for b, cost in costs.items()}
        planner = Planner(seconds, mixed=bool(row_mixing))
        sizes = [(size,) for axis in signature.axes for size in axis.sizes] or [()]
        self.groups = {
            s: types.SimpleNamespace(planner=planner, programs={b: b for b in buckets})
            for s in sizes
        }
        self.ran = []
        self.broken = None
        self.loops = False
        self.before = lambda _: None

    def run(self, program, arrays):
        """Answer as a program does: the whole bucket."""
        rows = arrays[0]
        assert all(len(array) == program for array in arrays)
        self.ran.append((program, rows.tolist()))
        self.canary()
        self.before(rows)
        if self.function is not None:
            return self.function(*arrays)
        if self.signature is SUM:
            return (rows.sum(axis=1, dtype=np.float32),)
        ids, mask = arrays
        return ids, (ids * mask).sum(axis=1, dtype=np.int32)

    def canary(self):
        """Run a program that cannot fail on a working device."""
        if self.broken is not None:
            raise self.broken

    def data_dependent(self, _sizes, _batch):
        """Whether a program's time depends on its inputs: false for all unless set."""
        return self.loops

    def check_memory(self, at_once):
        """Raise out of memory for so many runs."""

    def no_rows(self, sizes):
        """Return no rows."""
        named = dict(zip((axis.name for axis in self.signature.axes), sizes, strict=True))
        return {
            spec.name: np.empty(spec.concrete(0, named), numpy_dtype(spec.dtype))
            for spec in self.signature.outputs
        }


async def ask(service, inputs, timeout_s=None):
    """Send arrays by name to a service and return the response; cancelling this cancels the request."""
    result = asyncio.get_running_loop().create_future()
    parts = [service.model.checker.check(inputs)]
    request = service.submit(parts, result.set_result, timeout_s)
    try:
        answer = await result
    except asyncio.CancelledError:
        service.cancel(request)
        raise
    if isinstance(answer, Exception):
        raise answer
    return answer


class Gate:
    """Blocks a model before each run; for `FakeModel.before`."""

    def __init__(self):
        self._reached = threading.Semaphore(0)
        self._opened = threading.Semaphore(0)

    def __call__(self, _):
        """Wait on the device's thread until the gate is opened."""
        self._reached.release()
        assert self._opened.acquire(timeout=30)

    async def reached(self):
        """Wait until the device has reached the gate."""
        assert await asyncio.to_thread(self._reached.acquire, timeout=30)

    def open(self, runs=1):
        """Let the device run, so many times."""
        self._opened.release(runs)


class RecordedFailures:
    """Failures that end no process.

    Attributes:
      reasons: of each `on_fatal`.
      hangs: the number of `on_hang`.
      on_hang_do: called at each `on_hang`.
    """

    def __init__(self, on_hang_do=lambda: None):
        self.reasons = []
        self.hangs = 0
        self.on_hang_do = on_hang_do

    def on_fatal(self, reason):
        """Record the reason."""
        self.reasons.append(reason)

    def on_hang(self):
        """Count the hang."""
        self.hangs += 1
        self.on_hang_do()


@contextlib.asynccontextmanager
async def serving(model, process=None, max_running=1, replicas=(), **limits):
    """Yield a service on this loop, ready with a model; its executor ends with it.

    Batches run on the device's thread unless the limits allow inline runs, so that a model may wait.
    """
    limits = Limits(**{"inline_s": 0.0, **limits})
    service = Service(limits, process or RecordedFailures())
    service.open(model, replicas=replicas, max_running=max_running)
    try:
        yield service
    finally:
        service.close()


class Running:
    """A service on an event loop in a thread, for tests that are not asynchronous.

    Attributes:
      service: the service.
      failures: what ended the process, if it were one.
    """

    def __init__(self, **limits):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.failures = RecordedFailures()
        limits = Limits(**{"inline_s": 0.0, **limits})
        self.service = Service(limits, self.failures)

    def wait(self, call):
        """Run a coroutine on the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(30)

    def open(self, model, replicas=()):
        """Open a model on the loop, and its replicas."""

        async def open_there():
            self.service.startup_s = {"programs": 0.5}
            self.service.open(model, replicas=replicas)

        self.wait(open_there())

    def close(self):
        """End the device's thread and the loop."""
        self.service.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
