"""A request for an inference that came by gRPC."""

import asyncio
from typing import override

from runtime.model import Model
from server import oip_grpc
from server.dialect import LARGE_BYTES, Call, Inference
from server.protos import inference_pb2 as pb
from server.service import Service


class GrpcInference(Inference[bytes]):
    """A request for an inference, which a coroutine waits for."""

    off_loop = True

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
        """Answer it; cancelling gives it up."""
        self.begin(large=size > LARGE_BYTES)
        try:
            await self._ended
        except asyncio.CancelledError:
            self.withdraw()
            raise
        # An error knows the frames that it passed. If one of them, or what that has, knew the
        # error, only the next look for garbage would free them all, and the message with them.
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
        return self._made

    @override
    def read(self, model: Model) -> Call[bytes]:
        return oip_grpc.read(self._request, model, stream=self._stream)

    @override
    def written(self, message: bytes) -> None:
        self._made = message
        self._end()

    @override
    def failed(self, error: Exception) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        if not self._ended.done():  # its coroutine may be about to hear that it is cancelled
            self._ended.set_result(None)
