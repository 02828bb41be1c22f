"""The gRPC entrance: the Open Inference Protocol's service, health and reflection.

It runs on the service's event loop. Messages come and go as bytes, so that those that do not
parse are refused in our words, and large ones can be read on another thread.
"""

import asyncio
import functools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, override

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from runtime.model import Model
from server import oip, oip_grpc
from server.config import ConfigError, ServerConfig
from server.dialect import LARGE_BYTES, Call, Inference
from server.errors import Unsupported
from server.exposition import statistics
from server.figures import Gather, figures_of
from server.grpc_health import Health
from server.grpc_stream import Stream
from server.protos import inference_pb2 as pb
from server.protos.pool import POOL
from server.request import REQUEST_ID, RequestId, request_id
from server.routes import SERVER_NAME, SERVER_VERSION
from server.service import Service, State
from server.status import explain

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

# Of one connection; a client that has more waits for those to end.
CONCURRENT_STREAMS = 1024
# Calls beyond those that the queue holds: the device's, streams, health checks.
MORE_CALLS = 1024
# Trailers are limited to 8 KiB, and every byte may take three there.
LONGEST_TEXT = 2000

Context = Any  # grpc.aio.ServicerContext, which is not typed
Method = Callable[[bytes, Context], Awaitable[bytes]]


class Refused:
    """A request is answered with an error.

    Nothing that is raised: gRPC keeps what `abort` raises in a circle with the call, and by it
    all frames that it passed, with the message in them, until the next look for garbage.

    Args:
      error: whatever went wrong.
      identity: the message's own name for itself, empty if it has none.
      context: of the call, whose metadata may have a name for it and a trace.

    Attributes:
      identity: the same.
      known: the name that the log has for the request.
      status: of the error.
      text: what the client is told.
    """

    def __init__(self, error: Exception, context: Context, identity: str = "") -> None:
        self.identity = identity
        metadata = dict(context.invocation_metadata() or ())
        found = request_id(metadata.get) or RequestId(uuid.uuid4().hex)
        known = identity if REQUEST_ID.fullmatch(identity) else found
        self.known = RequestId(known, found.trace)
        self.status, text = explain(error, self.known)
        self.text = text[:LONGEST_TEXT]


class Entrance:
    """A gRPC server before a service.

    Args:
      service: answers.
      config: says where to listen, and the largest message.
      figures: gives the server's counts; those of this process unless it is given.
    """

    def __init__(
        self, service: Service, config: ServerConfig, figures: Gather | None = None
    ) -> None:
        self._service = service
        self._figures = figures or functools.partial(figures_of, service)
        self._health = Health(service, (INFERENCE,))
        self._streams: set[Stream] = set()
        self._address = address(config.host, config.grpc_port)
        self._server = grpc.aio.server(
            options=_options(config),
            # The queue refuses before this does: a client tries again for its UNAVAILABLE.
            maximum_concurrent_rpcs=config.max_queue_rows + MORE_CALLS,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(INFERENCE, self._methods()),
                grpc.method_handlers_generic_handler(HEALTH, self._health_methods()),
                _Unserved(self._unary(_unserved)),
            )
        )
        if config.reflection:
            servicer = reflection.ReflectionServicer((INFERENCE, HEALTH, REFLECTION), POOL)
            add_ServerReflectionServicer_to_server(servicer, self._server)

    async def start(self) -> int:
        """Begin to answer; returns the port.

        Raises:
          ConfigError: it cannot listen there.
        """
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise ConfigError(f"listen on {self._address}: the address is not free") from None
        await self._server.start()
        return int(port)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no more calls, answer those that are in, and end.

        Streams and watches, which might go on for ever, end once what was read is answered.

        Args:
          grace_s: what is not answered by then is cancelled.
        """
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        self._health.stop()
        for stream in self._streams:
            stream.stop()
        await stopping

    def _methods(self) -> dict[str, grpc.RpcMethodHandler]:
        telling: dict[str, tuple[type, Callable[[Any], Any]]] = {
            "ServerLive": (pb.ServerLiveRequest, self._live),
            "ServerReady": (pb.ServerReadyRequest, self._ready),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._about),
            "ModelMetadata": (pb.ModelMetadataRequest, self._metadata),
            "ModelStatistics": (pb.ModelStatisticsRequest, self._statistics),
        }
        return {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream_infer),
            **{name: self._unary(_reading(*how)) for name, how in telling.items()},
        }

    def _health_methods(self) -> dict[str, grpc.RpcMethodHandler]:
        check = _reading(HealthCheckRequest, lambda request: self._health.check(request.service))
        return {
            "Check": self._unary(check),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch, HealthCheckRequest.FromString
            ),
        }

    def _unary(self, tell: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler:
        """Make a method, counted as no inference, of a function of bytes."""

        async def method(data: bytes, context: Context) -> bytes:
            made: bytes | Refused
            try:
                made = tell(data)
            except Exception as error:  # noqa: BLE001 (every error has an answer)
                made = Refused(error, context)
            del data
            code = made.status.grpc if isinstance(made, Refused) else "OK"
            self._service.metrics.other("grpc", code)
            return await _sent(context, made)

        return grpc.unary_unary_rpc_method_handler(method)

    async def _infer(self, data: bytes, context: Context) -> bytes:
        made = await self._answer(data, context, stream=False)
        del data
        return await _sent(context, made)

    async def _stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async def answer(data: bytes) -> bytes:
            made = await self._answer(data, context, stream=True)
            if isinstance(made, Refused):
                return oip_grpc.refusal(made.identity, made.text)
            return made

        stream = Stream(answer, context.write)
        self._streams.add(stream)
        try:
            ended = await stream.run(requests)
        finally:
            self._streams.discard(stream)
        if not ended:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    async def _answer(self, data: bytes, context: Context, *, stream: bool) -> bytes | Refused:
        """Answer an inference, and count it."""
        begun = time.monotonic()
        count = self._service.metrics.inference
        identity, held = "", 0
        try:
            self._service.held.take(len(data))
            held = len(data)
            request = oip_grpc.parse(pb.ModelInferRequest, data)
            identity = request.id
            inference = _Inference(self._service, request, context.time_remaining(), stream=stream)
            made = await inference.answer(len(data))
        except asyncio.CancelledError:
            count("grpc", "CANCELLED", time.monotonic() - begun, "canceled")
            raise
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            refused = Refused(error, context, identity)
            count("grpc", refused.status.grpc, time.monotonic() - begun, refused.status.slug)
            return refused
        finally:
            self._service.held.give(held)
        count("grpc", "OK", time.monotonic() - begun)
        return made

    async def _watch(self, request: HealthCheckRequest, context: Context) -> None:
        self._service.metrics.other("grpc", "OK")
        async for told in self._health.watch(request.service):
            await context.write(told.SerializeToString())

    def _live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def _ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._service.state is State.READY)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        # Before it is loaded the model's name is not known.
        if self._service.loaded:
            oip.check_names(self._service.model.manifest, request.name, request.version)
        return pb.ModelReadyResponse(ready=self._service.state is State.READY)

    def _about(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=SERVER_VERSION, extensions=oip.EXTENSIONS
        )

    def _metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        manifest = self._service.model.manifest
        oip.check_names(manifest, request.name, request.version)
        return pb.ModelMetadataResponse(**oip.metadata(manifest))

    def _statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        manifest = self._service.model.manifest
        if request.name:
            oip.check_names(manifest, request.name, request.version)
        told = statistics(self._figures().metrics, manifest.name, manifest.version)
        return pb.ModelStatisticsResponse(**told)


class _Inference(Inference[bytes]):
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


class _Unserved(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Has one answer to every other method of the service."""

    def __init__(self, handler: grpc.RpcMethodHandler) -> None:
        self._handler = handler

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """Give the handler of a method; None if it is another service's."""
        ours = handler_call_details.method.startswith(f"/{INFERENCE}/")
        return self._handler if ours else None


def _unserved(_: bytes) -> bytes:
    raise Unsupported(
        "this method of the protocol is not served; ServerMetadata lists the extensions that are"
    )


def _reading[M](kind: type[M], tell: Callable[[M], Any]) -> Callable[[bytes], bytes]:
    """Make a function of bytes of one of messages."""

    def call(data: bytes) -> bytes:
        return tell(oip_grpc.parse(kind, data)).SerializeToString()  # type: ignore[no-any-return]

    return call


async def _sent(context: Context, made: bytes | Refused) -> bytes:
    """Give an answer, or abort the call with the refusal."""
    if isinstance(made, bytes):
        return made
    code = grpc.StatusCode[made.status.grpc]
    await context.abort(code, made.text, (("x-request-id", made.known),))
    raise AssertionError


def address(host: str, port: int) -> str:
    """Write an address as gRPC reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        # A port that is taken is an error, not shared in silence, except with our own.
        ("grpc.so_reuseport", int(config.processes > 1)),
        ("grpc.max_receive_message_length", config.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", CONCURRENT_STREAMS),
        # Clients' pings, however many and between calls too, are no offence.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        # A client that vanished without a word is noticed, and its requests given up.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
