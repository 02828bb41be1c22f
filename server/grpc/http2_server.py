"""The gRPC server on libnghttp2: the same services as `server`, on connections of our own."""

import asyncio
import contextlib
import functools

from runtime.errors import MalformedRequest
from server.batching.service import Service
from server.config import ConfigError, ServerConfig
from server.errors import Overloaded, Unsupported
from server.grpc.http2_call import Call, Method, Request
from server.grpc.http2_connection import Connection
from server.grpc.metadata import Unary
from server.grpc.options import CONNECTIONS, address
from server.grpc.services import HEALTH, INFERENCE, REFLECTION, UNSERVED, Services
from server.grpc.wire import Headers
from server.observability.snapshot import CollectStats, snapshot_of

_CHECK_S = 1.0
# HTTP's own refusal, as gRPC has it, of what is no call.
_NO_CALL: Headers = ((b":status", b"415"),)


def _refuse(text: str, _: Call, _message: bytes) -> None:
    raise Unsupported(text)


_UNSERVED = Method(functools.partial(_refuse, UNSERVED))
_UNKNOWN = Method(
    functools.partial(_refuse, "method: expected one of a service that is served, got another")
)


class Http2Server:
    """A gRPC server before a service; the same interface as `GrpcServer`.

    Args:
      service: answers.
      config: says where to listen, and the largest message.
      figures: returns the server's counts; None for those of this process.

    Attributes:
      memory: counts the bytes of requests and answers.
      max_age_s: of a connection; 0 without a limit.
      max_grace_s: how long calls of an old connection go on.
    """

    def __init__(
        self, service: Service, config: ServerConfig, figures: CollectStats | None = None
    ) -> None:
        self.memory = service.memory
        self.max_age_s = config.grpc_max_connection_age_s
        self.max_grace_s = config.request_timeout_ms / 1e3
        self._service = service
        self._config = config
        self._services = Services(service, figures or functools.partial(snapshot_of, service))
        self._methods = self._make_methods()
        self._connections: set[Connection] = set()
        self._closed = asyncio.Event()
        self._stopping = False
        self._listener: asyncio.Server | None = None

    async def start(self) -> int:
        """Start to accept calls; return the port.

        Raises:
          ConfigError: it cannot listen there.
        """
        config, loop = self._config, asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                functools.partial(Connection, self),
                config.host,
                config.grpc_port,
                backlog=CONNECTIONS,
                reuse_port=config.shares_ports or None,
            )
        except OSError:
            where = address(config.host, config.grpc_port)
            raise ConfigError(f"listen on {where}: the address is not free") from None
        self._check_timeouts()
        return int(self._listener.sockets[0].getsockname()[1])

    async def leave(self, grace_s: float = 0.0) -> None:
        """Answer the open calls, refuse new ones, and close the port and its connections.

        Streams and watches, which might go on for ever, end once what was read is answered.

        Args:
          grace_s: the longest that calls are waited for.
        """
        self._stopping = True  # connections that were accepted still arrive
        if self._listener is not None:
            self._listener.close()
        self._services.health.stop()
        for connection in list(self._connections):
            connection.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._connections:
                    self._closed.clear()
                    await self._closed.wait()
        for connection in list(self._connections):
            connection.abort()

    stop = leave  # as `GrpcServer` has it, for a process that goes on

    # What its connections ask

    def open(
        self, connection: Connection, stream_id: int, fields: dict[bytes, bytes]
    ) -> Call | Headers:
        """Return a call, or the response to a request that is none."""
        posts = fields.get(b":method") == b"POST"
        if not (posts and fields.get(b"content-type", b"").startswith(b"application/grpc")):
            return _NO_CALL
        path = fields.get(b":path", b"")
        method = self._methods.get(path)
        if method is None:
            ours = path.startswith(f"/{INFERENCE}/".encode())
            method = _UNSERVED if ours else _UNKNOWN
        return Call(connection, stream_id, method, self._service, self._config.max_body_bytes)

    def on_connected(self, connection: Connection) -> bool:
        """Add a connection; return whether there may be one more."""
        self._connections.add(connection)
        return not self._stopping and len(self._connections) <= CONNECTIONS

    def on_disconnected(self, connection: Connection) -> None:
        """Remove a connection."""
        self._connections.discard(connection)
        if not self._connections:
            self._closed.set()

    # Methods

    def _make_methods(self) -> dict[bytes, Method]:
        services = self._services
        found = {
            f"{INFERENCE}/ModelInfer": Method(self._infer, infers=True),
            f"{INFERENCE}/ModelStreamInfer": Method(self._infer, streams=True, infers=True),
            f"{HEALTH}/Check": self._unary(services.check),
            f"{HEALTH}/Watch": Method(self._watch),
        }
        for name, handler in services.inference.items():
            found[f"{INFERENCE}/{name}"] = self._unary(handler)
        if self._config.reflection:
            found[f"{REFLECTION}/ServerReflectionInfo"] = Method(self._reflect, streams=True)
        return {f"/{name}".encode(): method for name, method in found.items()}

    def _infer(self, call: Call, message: bytes) -> None:
        Request(call, self._service, message)

    def _unary(self, handler: Unary) -> Method:
        """Return a method that calls a function of bytes, not counted as an inference."""

        def ask(call: Call, message: bytes) -> None:
            call.answer(None, handler(message))
            self._service.metrics.count_request("grpc", "OK")

        return Method(ask)

    def _reflect(self, call: Call, message: bytes) -> None:
        call.answer(None, self._services.reflect(message), len(message))

    def _watch(self, call: Call, message: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._run_watch(call, message))
        call.running[task] = None

    async def _run_watch(self, call: Call, message: bytes) -> None:
        error: Exception | None = None
        try:
            with self._services.watching():
                async for state in self._services.watch(message):
                    call.send(state)
        except (Overloaded, MalformedRequest) as caught:
            error = caught
        call.running.clear()  # this task, which is not to be cancelled for its end
        if error is not None:
            call.refuse(error)
        call.end()

    def _check_timeouts(self) -> None:
        for connection in list(self._connections):
            connection.check_timeouts()
        if self._connections or not self._stopping:
            asyncio.get_running_loop().call_later(_CHECK_S, self._check_timeouts)
