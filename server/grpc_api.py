"""The gRPC entrance: the Open Inference Protocol's service, health and reflection.

It runs on the service's event loop. Messages come and go as bytes, so that those that do not
parse are refused in our words, and large ones can be read on another thread.
"""

import asyncio
import contextlib
import functools
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, override

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from runtime.model import Model
from server import connections, oip, oip_grpc
from server.config import ConfigError, ServerConfig
from server.dialect import LARGE_BYTES, Call, Inference
from server.errors import Draining, Overloaded, Unsupported
from server.exposition import statistics
from server.figures import Gather, figures_of
from server.grpc_health import Health
from server.grpc_options import address, options
from server.grpc_receive import Receiver
from server.grpc_stream import Stream, Streams
from server.held import UNCOUNTED, Unread
from server.protos import inference_pb2 as pb
from server.protos.pool import POOL
from server.request import REQUEST_ID, RequestId, request_id
from server.routes import SERVER_NAME, SERVER_VERSION
from server.service import Service, State
from server.status import explain

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

# Watches of the server's health at once.
WATCHES = 4096
# How long a stopping server lets calls wait for their refusal: most clients wait for it with them,
# and send nothing while the connections close.
HOLD_S = 0.2
UNSERVED = "this method of the protocol is not served; ServerMetadata lists the extensions that are"
# Trailers are limited to 8 KiB, and every byte may take three there.
LONGEST_TEXT = 2000

Context = Any  # grpc.aio.ServicerContext, which is not typed


class _Calls:
    """Calls that have come and are not over, down to the last byte of their answers."""

    def __init__(self) -> None:
        self.count = self.total = 0
        self._over = asyncio.Event()

    def add(self, context: Context) -> None:
        """Count a call until it is over."""
        self.count += 1
        self.total += 1
        context.add_done_callback(self._remove)

    async def over(self) -> None:
        """Wait until all of them are over."""
        while self.count:
            self._over.clear()
            await self._over.wait()

    def _remove(self, _: Context) -> None:
        self.count -= 1
        self._over.set()


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
        self._reflection = reflection.ReflectionServicer((INFERENCE, HEALTH, REFLECTION), POOL)
        self._receiver = Receiver()
        self._streams = Streams()
        self._watches = 0
        self._calls = _Calls()
        self._stopping = False
        self._stopped = asyncio.Event()
        self._port = 0
        self._address = address(config.host, config.grpc_port)
        self._server = grpc.aio.server(options=options(config))
        services = {INFERENCE: self._methods(), HEALTH: self._health_methods()}
        if config.reflection:
            services[REFLECTION] = {
                "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self._reflect)
            }
        handlers = [grpc.method_handlers_generic_handler(*service) for service in services.items()]
        unserved = grpc.stream_unary_rpc_method_handler(self._unserved)
        self._server.add_generic_rpc_handlers((*handlers, _Unserved(unserved)))

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
        self._port = int(port)
        return self._port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Answer the calls that are in, refuse those that still come, and close.

        Streams and watches, which might go on for ever, end once what was read is answered.

        Every call is answered, or its client told UNAVAILABLE. gRPC's own stop tells CANCELLED,
        after which nobody tries again, to whoever's call comes while it goes on. So calls that
        come are refused here, and it begins only when the connections have been shut.

        Args:
          grace_s: the longest that calls are waited for.
        """
        calls, self._calls, self._stopping = self._calls, _Calls(), True
        self._health.stop()
        self._streams.stop()
        self._receiver.stop(_stopping())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await calls.over()
                if calls.total:
                    await asyncio.sleep(HOLD_S)
        calls, self._calls = self._calls, _Calls()
        self._stopped.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(grace_s, HOLD_S)):
                await calls.over()
        connections.shut(self._port)
        closing = asyncio.Task(
            self._server.stop(None), loop=asyncio.get_running_loop(), eager_start=True
        )
        connections.shut(self._port)  # those that were opened between the two
        await closing

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
            # A handler of one message would be called once that has arrived.
            "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream_infer),
            **{name: self._unary(_reading(*how)) for name, how in telling.items()},
        }

    def _health_methods(self) -> dict[str, grpc.RpcMethodHandler]:
        check = _reading(HealthCheckRequest, lambda request: self._health.check(request.service))
        return {
            "Check": self._unary(check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }

    def _unary(self, tell: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler:
        """Make a method, counted as no inference, of a function of bytes."""

        async def method(_: object, context: Context) -> bytes:
            self._calls.add(context)
            made: bytes | Refused
            try:
                made = tell(await self._receiver.receive(context))
            except Exception as error:  # noqa: BLE001 (every error has an answer)
                made = Refused(error, context)
            code = made.status.grpc if isinstance(made, Refused) else "OK"
            self._service.metrics.other("grpc", code)
            return await _sent(context, made)

        return grpc.stream_unary_rpc_method_handler(method)

    async def _unserved(self, _: object, context: Context) -> bytes:
        refused = Refused(Unsupported(UNSERVED), context)
        self._service.metrics.other("grpc", refused.status.grpc)
        return await _sent(context, refused)

    async def _infer(self, _: object, context: Context) -> bytes:
        self._calls.add(context)
        made = await self._answer(context, functools.partial(self._hold, context))
        return await _sent(context, made)

    def _hold(self, context: Context, size: int) -> None:
        """Count the answer of a call until its client has read it, unless it is a small one."""
        if size > UNCOUNTED:
            held = self._service.held
            held.take_answer(size)
            context.add_done_callback(lambda _: held.give(size))

    async def _stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        unread = Unread(self._service.held)

        async def answer(data: bytes) -> bytes:
            made = await self._answer(context, unread.add, data)
            if isinstance(made, Refused):
                text = oip_grpc.refusal(made.identity, made.text)
                unread.size += len(text)
                return text
            return made

        stream = Stream(
            answer, context.write, unread=unread, expected=self._service.output_row_bytes
        )
        await self._run(stream, requests, context)

    async def _reflect(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async def answer(data: bytes) -> bytes:
            request = ServerReflectionRequest.FromString(data)
            told = self._reflection.ServerReflectionInfo(_only(request), context)
            return b"".join([each.SerializeToString() async for each in told])

        await self._run(Stream(answer, context.write), requests, context)

    async def _run(self, stream: Stream, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer a stream, and end it as it ends."""
        self._calls.add(context)
        refused = None
        connection = context.peer()
        try:
            if self._stopping:
                await self._refuse()
            self._streams.add(connection, stream)
            if not await stream.run(requests):
                refused = Refused(_stopping(), context)
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            refused = Refused(error, context)
        finally:
            self._streams.discard(connection, stream)
        if refused is not None:
            self._service.metrics.other("grpc", refused.status.grpc)
            await _sent(context, refused)

    async def _answer(
        self, context: Context, hold: Callable[[int], object], data: bytes | None = None
    ) -> bytes | Refused:
        """Answer an inference, and count it.

        Args:
          context: of its call.
          hold: counts an answer of so many bytes, or raises Overloaded.
          data: the request, where it came by a stream; otherwise it has to arrive yet.
        """
        begun = time.monotonic()
        count = self._service.metrics.inference
        identity, held = "", 0
        stream = data is not None
        try:
            if data is None:
                if self._stopping:
                    await self._refuse()
                data = await self._receiver.receive(context)
            self._service.held.take(len(data))
            size = held = len(data)
            request = oip_grpc.parse(pb.ModelInferRequest, data)
            del data
            identity = request.id
            inference = _Inference(self._service, request, context.time_remaining(), stream=stream)
            made = await inference.answer(size)
            hold(len(made))
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

    async def _watch(self, _: object, context: Context) -> None:
        self._calls.add(context)
        refused = None
        self._watches += 1
        try:
            self._expect_room()
            request = oip_grpc.parse(HealthCheckRequest, await self._receiver.receive(context))
            self._service.metrics.other("grpc", "OK")
            async for told in self._health.watch(request.service):
                await context.write(told.SerializeToString())
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            refused = Refused(error, context)
        finally:
            self._watches -= 1
        if refused is not None:
            self._service.metrics.other("grpc", refused.status.grpc)
            await _sent(context, refused)

    def _expect_room(self) -> None:
        if self._watches > WATCHES:
            raise Overloaded(f"watches: expected at most {WATCHES} at once, got more")

    async def _refuse(self) -> NoReturn:
        """Refuse a call that comes while the server stops, together with the others.

        Raises:
          Draining: always.
        """
        await self._stopped.wait()
        raise _stopping()

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


def _stopping() -> Draining:
    return Draining("the server is stopping")


async def _only[M](message: M) -> AsyncIterator[M]:
    yield message


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
