"""The gRPC server: the Open Inference Protocol's service, health and reflection.

It runs on the service's event loop. Messages are passed as bytes, so that those that do not
parse are refused in our words, and large ones can be read on another thread.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

from runtime.errors import MalformedRequest
from server.batching.memory_budget import FREE_BYTES, Unread
from server.batching.service import Service
from server.config import ConfigError, ServerConfig
from server.errors import BodyTimeout, Unavailable, Unsupported
from server.grpc import connections
from server.grpc.calls import Calls, Context, RpcError, sent
from server.grpc.inference import GrpcInference
from server.grpc.options import LINGER_S, address, options
from server.grpc.receive import Receiver
from server.grpc.services import HEALTH, INFERENCE, REFLECTION, UNSERVED, Services, stopping
from server.grpc.stream import Stream, Streams
from server.observability.snapshot import CollectStats, snapshot_of
from server.protocols import oip_grpc
from server.protos import inference_pb2 as pb


class GrpcServer:
    """A gRPC server before a service.

    Args:
      service: answers.
      config: says where to listen, and the largest message.
      figures: returns the server's counts; None for those of this process.
    """

    def __init__(
        self, service: Service, config: ServerConfig, figures: CollectStats | None = None
    ) -> None:
        self._service = service
        self._services = Services(service, figures or functools.partial(snapshot_of, service))
        self._receiver = Receiver()
        self._streams = Streams()
        self._calls = Calls()
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
        """Start to accept calls; return the port.

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

    async def leave(self, grace_s: float) -> None:
        """Answer the open calls, refuse new ones, and close the port.

        Streams and watches, which might go on for ever, end once what was read is answered.

        Every call is answered, if only with UNAVAILABLE. gRPC's own stop answers CANCELLED,
        after which no client tries again, to calls that arrive while it goes on, and it has no
        other way to announce the end of a connection. So it is not used: the process has to end next.

        Args:
          grace_s: the longest that calls are waited for.
        """
        await self._drain(grace_s)
        connections.announce_end(self._port)
        self._stopped.set()
        await connections.end(self._port, LINGER_S)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Answer the open calls, and stop, in a process that goes on; see `leave`.

        Args:
          grace_s: what is not answered by then is cancelled.
        """
        await self._drain(grace_s)
        self._stopped.set()
        await self._server.stop(None)

    async def _drain(self, grace_s: float) -> None:
        """Answer the open calls; those that arrive meanwhile wait to be refused."""
        calls, self._calls, self._stopping = self._calls, Calls(), True
        self._services.health.stop()
        self._streams.stop()
        self._receiver.stop(stopping())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await calls.over()

    def _methods(self) -> dict[str, grpc.RpcMethodHandler]:
        return {
            # A handler of one message would be called once that has arrived.
            "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream_infer),
            **{name: self._unary(method) for name, method in self._services.inference.items()},
        }

    def _health_methods(self) -> dict[str, grpc.RpcMethodHandler]:
        return {
            "Check": self._unary(self._services.check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }

    def _unary(self, handler: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler:
        """Return a unary method that calls a function of bytes, not counted as an inference."""

        async def method(_: object, context: Context) -> bytes:
            calls = self._calls
            calls.enter()
            try:
                made: bytes | RpcError
                try:
                    made = handler(await self._receiver.receive(context))
                except Exception as error:  # noqa: BLE001 (every error has an answer)
                    made = RpcError(error, context)
                code = made.status.grpc if isinstance(made, RpcError) else "OK"
                self._service.metrics.count_request("grpc", code)
                return await sent(context, made)
            finally:
                calls.leave(context)

        return grpc.stream_unary_rpc_method_handler(method)

    async def _unserved(self, _: object, context: Context) -> bytes:
        refused = RpcError(Unsupported(UNSERVED), context)
        self._service.metrics.count_request("grpc", refused.status.grpc)
        return await sent(context, refused)

    async def _infer(self, _: object, context: Context) -> bytes:
        calls = self._calls
        calls.enter()
        try:
            return await sent(context, await self._answer(context))
        finally:
            calls.leave(context)

    def _acquire_answer(self, context: Context, size: int) -> None:
        """Count the answer of a call until its client has read it.

        Raises:
          Overloaded: all answers together would be too much.
        """
        memory = self._service.memory
        memory.acquire_answer(size)
        context.add_done_callback(lambda _: memory.release(size))

    async def _stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        unread = Unread(self._service.memory)

        async def answer(data: bytes) -> bytes:
            made = await self._answer(context, data, unread)
            if isinstance(made, RpcError):
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
            return self._services.reflect(data)

        await self._run(Stream(answer, context.write), requests, context)

    async def _run(self, stream: Stream, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer a stream, and end it as it ends."""
        calls = self._calls
        calls.enter()
        refused = None
        connection = context.peer()
        try:
            if self._stopping:
                await self._refuse()
            self._streams.add(connection, stream)
            if not await stream.run(requests):
                refused = RpcError(stopping(), context)
        except (Unavailable, BodyTimeout) as error:  # others are gRPC's: the client has gone
            refused = RpcError(error, context)
        finally:
            self._streams.discard(connection, stream)
            calls.leave(context)
        if refused is not None:
            self._service.metrics.count_request("grpc", refused.status.grpc)
            await sent(context, refused)

    async def _answer(
        self, context: Context, data: bytes | None = None, unread: Unread | None = None
    ) -> bytes | RpcError:
        """Answer an inference, and count it.

        Args:
          context: of its call.
          data: the request, where it is of a stream; otherwise it has to arrive yet.
          unread: counts the answers of that stream.
        """
        begun = time.monotonic()
        count = self._service.metrics.count_inference
        identity, acquired = "", 0
        try:
            if data is None:
                if self._stopping:
                    await self._refuse()
                data = await self._receiver.receive(context)
            self._service.memory.acquire(len(data))
            size = acquired = len(data)
            request = oip_grpc.parse(pb.ModelInferRequest, data)
            del data
            identity = request.id
            inference = GrpcInference(
                self._service, request, context.time_remaining(), stream=unread is not None
            )
            made = await inference.answer(size)
            if unread is not None:
                unread.add(len(made))
            elif len(made) > FREE_BYTES:
                self._acquire_answer(context, len(made))
        except asyncio.CancelledError:
            count("grpc", "CANCELLED", time.monotonic() - begun, "canceled")
            raise
        except Exception as error:  # noqa: BLE001 (every error has an answer)
            refused = RpcError(error, context, identity)
            count("grpc", refused.status.grpc, time.monotonic() - begun, refused.status.error_code)
            return refused
        finally:
            self._service.memory.release(acquired)
        count("grpc", "OK", time.monotonic() - begun)
        return made

    async def _watch(self, _: object, context: Context) -> None:
        calls = self._calls
        calls.enter()
        refused = None
        try:
            with self._services.watching():
                data = await self._receiver.receive(context)
                async for state in self._services.watch(data):
                    await context.write(state)
        except (Unavailable, BodyTimeout, MalformedRequest) as error:  # others are gRPC's
            refused = RpcError(error, context)
        finally:
            calls.leave(context)
        if refused is not None:
            self._service.metrics.count_request("grpc", refused.status.grpc)
            await sent(context, refused)

    async def _refuse(self) -> NoReturn:
        """Refuse a call that arrives while the server stops, together with the others.

        Raises:
          Draining: always.
        """
        await self._stopped.wait()
        raise stopping()


class _Unserved(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handles every other method of the service with the same handler."""

    def __init__(self, handler: grpc.RpcMethodHandler) -> None:
        self._handler = handler

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """Return the handler of a method; None if it is another service's."""
        ours = handler_call_details.method.startswith(f"/{INFERENCE}/")
        return self._handler if ours else None
