"""A call of an HTTP/2 connection, from its messages to its status.

Callbacks and no coroutines, as in `server.http`: what a coroutine waits for costs twice the time.
All on the event loop.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, override

from runtime.errors import MalformedRequest
from runtime.model import Model
from server.batching.service import Service
from server.errors import BodyTimeout, DeadlineExceeded, IncompleteBody, Overloaded
from server.grpc.calls import RpcError
from server.grpc.services import stopping
from server.grpc.stream import MAX_PENDING, UNREAD
from server.grpc.wire import MessageReader, read_timeout
from server.protocols import oip_grpc
from server.protocols.body import PROGRESS_BYTES
from server.protocols.inference import LARGE_BYTES, Inference, ParsedRequest
from server.protos import inference_pb2 as pb

if TYPE_CHECKING:
    from server.grpc.http2_connection import Connection

# Checks without progress, one each second, after which a call ends that waits for its client. They are
# counted, and no clock is read: a process that was suspended ends no call for it.
MAX_CHECKS = 60
# What an error names a request by.
_NAMES = (b"x-request-id", b"traceparent", b"x-cloud-trace-context")


class Cancellable(Protocol):
    """What goes on for a call, and is cancelled when its client has gone."""

    def cancel(self) -> object:
        """Cancel it."""


class Method(NamedTuple):
    """A method of a service.

    Attributes:
      ask: takes a message of a call; raises what refuses the call.
      streams: whether a call has many messages.
      infers: whether a call that is refused counts as an inference.
    """

    ask: "Callable[[Call, bytes], object]"
    streams: bool = False
    infers: bool = False


class Call:
    """A call of a client.

    Args:
      connection: its connection.
      stream_id: its stream there.
      method: what it calls.
      service: counts it.
      limit: bytes that a message may have.

    Attributes:
      id: its stream.
      half_closed: whether the client sends no more.
      answering: whether its response has begun.
      ended: whether it has its status.
      running: what goes on for it.
      streams: whether it has many messages.
    """

    def __init__(
        self, connection: "Connection", stream_id: int, method: Method, service: Service, limit: int
    ) -> None:
        self.id = stream_id
        self.half_closed = self.answering = self.ended = False
        self.running: dict[Cancellable, None] = {}
        self.streams = method.streams
        self._connection = connection
        self._method = method
        self._service = service
        self._fields: Mapping[bytes, bytes] = {}
        self._reader = MessageReader(limit)
        self._begun = time.monotonic()
        self._deadline: float | None = None
        self._asked = self._reading = self._stopping = False
        self._expected = service.output_row_bytes if method.infers else 0
        self._received = self._counted = self._unacknowledged = 0
        self._checks = 0
        self._progress = (0, 0)

    def begin(self, fields: Mapping[bytes, bytes]) -> None:
        """Read the headers."""
        self._fields = fields
        try:
            timeout_s = read_timeout(fields)
            self._deadline = None if timeout_s is None else self._begun + timeout_s
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            self.refuse(error)

    def on_data(self, data: bytes, *, end: bool) -> None:
        """Take bytes that the client sent."""
        self.half_closed = end
        self._unacknowledged += len(data)
        if not self.ended:
            try:
                self._connection.received.add(len(data))
            except Overloaded as error:
                self.refuse(error)
            else:
                self._received += len(data)
                self._counted += len(data)
                self._reader.feed(data)
        self.read()

    def read(self) -> None:
        """Take the messages that are whole, as long as their answers do not become too many."""
        if self._reading:
            return  # it goes on below, as soon as what was taken is under way
        self._reading = True
        try:
            while not self.ended and self._ready and (message := self._reader.take()) is not None:
                self._take(message)
            if self.half_closed and not self.ended and self._ready:
                self._on_half_close()
        except Exception as error:  # noqa: BLE001 (likewise)
            self.refuse(error)
        self._reading = False
        if self.ended or self._ready:
            self._acknowledge()

    def remaining(self) -> float | None:
        """Return the time that is left, in seconds; None without a limit."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def send(self, message: bytes) -> None:
        """Send a message, and go on; raises Overloaded where too many wait to be read."""
        self._connection.write(self, message)

    def answer(self, request: Cancellable | None, message: bytes, size: int = 0) -> None:
        """Send an answer, the only one unless the call streams.

        Args:
          request: has ended with it.
          message: the answer.
          size: bytes of the message that it answers.

        Raises:
          Overloaded: too many answers wait to be read; it is not sent.
        """
        self._connection.write(self, message)
        self._expected = max(self._expected, len(message))
        self._finish(request, size)

    def fail(self, request: Cancellable, refused: RpcError, size: int) -> None:
        """Send the error of a message, as an answer if the call streams."""
        if self.streams:
            try:
                self._connection.write(self, oip_grpc.refusal(refused.identity, refused.text))
            except Overloaded as error:
                self.refuse(error)
        self._finish(request, size, refused)

    def refuse(self, error: Exception) -> None:
        """End with an error, and count it."""
        if self.ended:
            return
        refused = RpcError(error, self)
        metrics, status = self._service.metrics, refused.status
        if self._method.infers and not self.streams:
            seconds = time.monotonic() - self._begun
            metrics.count_inference("grpc", status.grpc, seconds, status.error_code)
        else:
            metrics.count_request("grpc", status.grpc)
        self.end(refused)

    def end(self, refused: RpcError | None = None) -> None:
        """End with an error, or well."""
        if not self.ended:
            self._connection.finish(self, refused)
            self.drop()

    def drop(self) -> None:
        """Free all that it has: it has ended, or its client has gone."""
        self.ended = True
        self._acknowledge()  # of a stream that is closed, it still counts for the connection
        self._reader = MessageReader(0)
        self._release(self._counted)
        running, self.running = self.running, {}
        for each in running:
            each.cancel()

    def stop(self) -> None:
        """Take no more messages, and end once those that were taken are answered."""
        self._stopping = self.streams
        if not self.running:
            self.refuse(stopping())

    def check_timeouts(self) -> None:
        """End it if its client makes no progress with its message, or with the answer, or it is late."""
        if self.streams and (self.remaining() or 1.0) < 0.0:
            self.refuse(DeadlineExceeded("the call's time was over before it ended"))
        unsent = self._connection.unsent(self)
        incomplete = self._reader.size > 0 or not (self._asked or self.streams)
        progress = (self._received // PROGRESS_BYTES, unsent)
        if progress != self._progress or not (self.ended or unsent or (incomplete and self._ready)):
            self._progress, self._checks = progress, 0
            return
        self._checks += 1
        if self._checks >= MAX_CHECKS and (self.ended or unsent):
            self._connection.reset(self)
        elif self._checks >= MAX_CHECKS:
            self.refuse(BodyTimeout(f"message: expected all of it within {MAX_CHECKS} s"))

    def invocation_metadata(self) -> dict[str, str]:
        """Return the metadata that names the request; see `RpcError`."""
        found = ((name, self._fields.get(name)) for name in _NAMES)
        return {name.decode(): value.decode("ascii", "replace") for name, value in found if value}

    @property
    def _ready(self) -> bool:
        """Whether another message may be taken, which may have an answer as large as the others."""
        if not self.streams:
            return True
        unread, count = self._connection.unread.size, len(self.running)
        if self._stopping or count >= MAX_PENDING:
            return False
        return unread + count == 0 or unread + (count + 1) * self._expected <= UNREAD

    def _take(self, message: bytes) -> None:
        if self.streams or not self._asked:  # as with grpc.aio, what follows the first is not read
            self._asked = True
            self._method.ask(self, message)

    def _on_half_close(self) -> None:
        if self._reader.size:
            raise IncompleteBody("message: expected all of it, got less")
        if not (self._asked or self.streams):
            raise MalformedRequest("message: expected one, got none")
        if self.streams and not self.running:
            self.end()

    def _finish(
        self, request: Cancellable | None, size: int, refused: RpcError | None = None
    ) -> None:
        """Go on after an answer, or end with it unless the call streams."""
        if request is not None:
            self.running.pop(request, None)
        if not self.streams:
            self.end(refused)
            return
        self._release(min(size, self._counted))
        if self._stopping and not self.running:
            self.refuse(stopping())
        elif self._reader.size or self.half_closed or self._unacknowledged:
            self.read()

    def _acknowledge(self) -> None:
        if self._unacknowledged:
            size, self._unacknowledged = self._unacknowledged, 0
            self._connection.acknowledge(self, size)

    def _release(self, size: int) -> None:
        self._counted -= size
        self._connection.received.remove(size)


class Request(Inference[bytes]):
    """An inference request: the message of a call, or one of many.

    Args:
      call: has it.
      service: runs the model.
      message: as it was received.
    """

    def __init__(self, call: Call, service: Service, message: bytes) -> None:
        super().__init__(service, call.remaining())
        self._call = call
        self._message = message
        self._size = len(message)
        self._identity = ""
        self._begun = time.monotonic()
        call.running[self] = None
        self.begin(large=self._size > LARGE_BYTES)

    @override
    def parse(self, model: Model) -> ParsedRequest[bytes]:
        message, self._message = self._message, b""
        request = oip_grpc.parse(pb.ModelInferRequest, message)
        self._identity = request.id
        return oip_grpc.read(request, model, stream=self._call.streams)

    @override
    def on_response(self, message: bytes) -> None:
        try:
            self._call.answer(self, message, self._size)
        except Overloaded as error:
            self.on_error(error)
        else:
            self._count("OK")

    @override
    def on_error(self, error: Exception) -> None:
        refused = RpcError(error, self._call, self._identity)
        self._count(refused.status.grpc, refused.status.error_code)
        self._call.fail(self, refused, self._size)

    @override
    def cancel(self) -> None:
        super().cancel()
        self._count("CANCELLED", "canceled")

    def _count(self, status: str, error_code: str | None = None) -> None:
        seconds = time.monotonic() - self._begun
        self.service.metrics.count_inference("grpc", status, seconds, error_code)
