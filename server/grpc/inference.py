"""An inference request of a gRPC call."""

import asyncio
from typing import override

from runtime.model import Model
from server.batching.service import Service
from server.protocols import oip_grpc
from server.protocols.inference import LARGE_BYTES, Inference, ParsedRequest
from server.protos import inference_pb2 as pb


class GrpcInference(Inference[bytes]):
    """An inference request that a coroutine waits for."""

    prefer_thread = True

    def __init__(
        self,
        service: Service,
        request: pb.ModelInferRequest,
        timeout_s: float | None,
        *,
        stream: bool,
    ) -> None:
        super().__init__(service, timeout_s)
        self._request = request
        self._stream = stream
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._made = b""
        self._error: Exception | None = None

    async def answer(self, size: int) -> bytes:
        """Return the answer; cancelling the coroutine cancels the request."""
        self.begin(large=size > LARGE_BYTES)
        try:
            await self._ended
        except asyncio.CancelledError:
            self.cancel()
            raise
        # An error refers to the frames that it passed. If one of them referred to the error, only the
        # garbage collector's next run would free them all, and the message with them.
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
        return self._made

    @override
    def parse(self, model: Model) -> ParsedRequest[bytes]:
        return oip_grpc.read(self._request, model, stream=self._stream)

    @override
    def on_response(self, message: bytes) -> None:
        self._made = message
        self._end()

    @override
    def on_error(self, error: Exception) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        if not self._ended.done():  # its coroutine may be cancelled already
            self._ended.set_result(None)
