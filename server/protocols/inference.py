"""Inference requests of any protocol: parse, submit to the service, serialize the response.

A protocol is two plain functions: one parses a body into arrays, one serializes the results.
"""

import abc
import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from runtime.inputs import Checked
from runtime.model import Model
from runtime.preprocessing.preparation import RawRows
from server.batching.pending_request import InferenceMetadata, InferenceResult, PendingRequest
from server.batching.service import Service
from server.protocols.response import Headers, Response

# Larger bodies are parsed, and larger responses serialized, in a worker thread, so that they do not
# block the event loop. Below this size the thread switch costs more than it saves.
LARGE_BYTES = 1 << 18


class ParsedRequest[T](NamedTuple):
    """A parsed request.

    Attributes:
      parts: inputs checked against the signature, one part for all rows of the same sizes; or raw
        rows, which the service prepares.
      write: serializes the results.
      timeout_s: the client's own time limit.
      row_errors: rows that failed by themselves and are in no part.
    """

    parts: Sequence[Checked] | RawRows
    write: Callable[[InferenceResult], T]
    timeout_s: float | None = None
    row_errors: int = 0


# Parses a body, of which the first bytes are JSON; see `BodyInfo.json_length`.
Read = Callable[[bytes, int | None, Model], ParsedRequest[Response]]


class Inference[T](abc.ABC):
    """An inference request from parsing to the response. All methods run on the event loop.

    Exactly one of `on_response` and `on_error` is called, once, possibly before `begin` returns;
    neither after `cancel`.

    Args:
      service: runs the model.
      timeout_s: time limit from the headers; the body may have a shorter one.

    Attributes:
      service: runs the model.
      metadata: the inference's metadata, once there is a result.
      prefer_thread: whether the event loop is needed while a program runs; see `BatchScheduler`.
    """

    prefer_thread = False

    def __init__(self, service: Service, timeout_s: float | None) -> None:
        self.service = service
        self.metadata: InferenceMetadata
        self._timeout_s = timeout_s
        self._write: Callable[[InferenceResult], T]
        self._pending: PendingRequest | None = None
        self._cancelled = False
        self._deprioritized = False

    @abc.abstractmethod
    def parse(self, model: Model) -> ParsedRequest[T]:
        """Return the parsed request; raises what is wrong with it. May run in a worker thread."""

    @abc.abstractmethod
    def on_response(self, message: T) -> None:
        """Send the response."""

    @abc.abstractmethod
    def on_error(self, error: Exception) -> None:
        """Send the error response for an exception; see `status.explain`."""

    def begin(self, *, large: bool) -> None:
        """Parse the request and submit it.

        Args:
          large: whether to parse in a worker thread; see LARGE_BYTES.
        """
        try:
            model = self.service.model
            if large:
                self._in_thread(self.submit, self.parse, model)
                return
            parsed = self.parse(model)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            self.on_error(error)
        else:
            self.submit(parsed)

    def cancel(self) -> None:
        """Cancel the request: its client disconnected."""
        self._cancelled = True
        if self._pending is not None:
            self.service.cancel(self._pending)

    def deprioritize(self) -> None:
        """Let the request be dropped where the queue is full: its client may have disconnected."""
        self._deprioritized = True
        if self._pending is not None:
            self.service.deprioritize(self._pending)

    def submit(self, parsed: ParsedRequest[T]) -> None:
        """Submit the parsed request to the service."""
        parts, self._write, own_s, refused = parsed
        if refused:
            self.service.metrics.row_errors += refused
        timeout_s = self._timeout_s
        if timeout_s is None or (own_s is not None and own_s < timeout_s):
            timeout_s = own_s
        try:
            self._pending = self.service.submit(
                parts, self._on_result, timeout_s, prefer_thread=self.prefer_thread
            )
        except Exception as error:  # noqa: BLE001 (likewise)
            self.on_error(error)
        else:
            if self._deprioritized:
                self.deprioritize()

    def _on_result(self, result: InferenceResult | Exception) -> None:
        if isinstance(result, Exception):
            self.on_error(result)
            return
        self.metadata = result.metadata
        if result.rows * self.service.output_row_bytes > LARGE_BYTES:
            self._in_thread(self.on_response, self._write, result)
            return
        try:
            message = self._write(result)
        except Exception as error:  # noqa: BLE001 (likewise)
            self.on_error(error)
        else:
            self.on_response(message)

    def _in_thread(
        self, callback: Callable[[Any], object], function: Callable[..., Any], argument: object
    ) -> None:
        """Call a function in a worker thread, then a callback with its result on the loop."""

        def on_done(future: asyncio.Future[Any]) -> None:
            error = future.exception()
            if self._cancelled:
                return
            if isinstance(error, Exception):
                self.on_error(error)
            else:
                callback(future.result())

        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, function, argument).add_done_callback(on_done)


def metadata_of(model: Model, metadata: InferenceMetadata) -> dict[str, str | int]:
    """Return the metadata of an inference by name."""
    prepared = metadata.prepared
    raw = (
        {
            "preprocess_us": round(prepared.seconds * 1e6),
            "tokens": prepared.tokens,
            "truncated": prepared.truncated,
        }
        if prepared
        else {}
    )
    return {
        "bundle": model.bundle.digest,
        "bucket": metadata.bucket,
        "padded_rows": metadata.padded_rows,
        "queue_us": round(metadata.queue_s * 1e6),
        "compute_us": round(metadata.compute_s * 1e6),
        **({"device": ",".join(metadata.devices)} if metadata.devices else {}),
        **raw,
    }


def metadata_headers(model: Model, metadata: InferenceMetadata) -> Headers:
    """Return the metadata of an inference as X-Hloserve-* headers."""
    named = metadata_of(model, metadata).items()
    return tuple((f"x-hloserve-{name.replace('_', '-')}", str(value)) for name, value in named)
