"""Passes a batch's result on, counts it, and decides whether its device still works."""

from collections.abc import Callable

from runtime.model import Model
from runtime.signature import bucket_name
from runtime.staging import count_elements
from server.batching.executor import BatchResult
from server.batching.failures import Failures
from server.batching.pending_request import BatchOutputs
from server.metrics import Metrics


class BatchRecorder:
    """Handles each batch's result, on the event loop.

    Args:
      model: of any device: its signature and outputs.
      metrics: counts the batches.
      deliver: called with each result, and with its outputs if they can be read row for row.
      failures: called when a device fails too often.
      max_failures: consecutive batches of a device that fail as a whole before it counts as lost.
    """

    def __init__(
        self,
        model: Model,
        metrics: Metrics,
        deliver: Callable[[BatchResult, BatchOutputs | None], object],
        failures: Failures,
        max_failures: int,
    ) -> None:
        self._model = model
        self._metrics = metrics
        self._deliver = deliver
        self._failures = failures
        self._max_failures = max_failures
        # By the device's name: what others answer in between does not make it work.
        self._consecutive_failures: dict[str, int] = {}
        # Whether a row's outputs have the same shape, whatever batch it is in.
        self._by_row = not any(
            isinstance(d, str) for s in model.signature.outputs for d in s.shape[1:]
        )

    def record(self, result: BatchResult) -> None:
        """Deliver a result, count its batch, and report a device that keeps failing."""
        self._deliver(result, self._batch_outputs(result))
        batch, device, signature = result.batch, result.device, self._model.signature
        name = bucket_name(signature, batch.sizes, batch.bucket)
        pairs = zip(batch.tasks, result.answers, strict=True)
        answered = sum([task.rows for task, answer in pairs if type(answer) is tuple])
        self._metrics.count_batch(name, device, batch.bucket, batch.rows, answered, result.times)
        parts = [task.payload[0] for task in batch.tasks]
        self._metrics.count_padding(*count_elements(signature, parts, batch.bucket, batch.sizes))
        failures = self._consecutive_failures
        failures[device] = failures.get(device, 0) + 1 if result.failed else 0
        if failures[device] >= self._max_failures:
            self._failures.on_fatal(
                f"device {device}: {failures[device]} batches failed one after the other"
            )

    def _batch_outputs(self, result: BatchResult) -> BatchOutputs | None:
        """Return a batch's outputs for all of its tasks, if they can be read row for row."""
        if not result.as_declared or not self._by_row:
            return None
        rows = [output[: result.batch.rows] for output in result.outputs]
        return BatchOutputs(dict(zip(self._model.output_names, rows, strict=True)))
