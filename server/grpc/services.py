"""The services of gRPC that both fronts serve: their methods from bytes to bytes, and their limits.

Inferences apart, which have a class for each front.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator

from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection import SERVICE_NAME, ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2 import (
    ErrorResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from runtime.errors import MalformedRequest
from server.batching.service import Service
from server.errors import Draining, Overloaded
from server.grpc.health import Health
from server.grpc.metadata import Metadata, Unary, unary
from server.observability.snapshot import CollectStats
from server.protocols import oip_grpc
from server.protos.pool import POOL

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION: str = SERVICE_NAME

# Watches of the server's health at once.
WATCHES = 4096
UNSERVED = "this method of the protocol is not served; ServerMetadata lists the extensions that are"
# gRPC's status INVALID_ARGUMENT.
_INVALID_ARGUMENT = 3


class Services:
    """Answers every method that is no inference.

    Args:
      service: whose model it is.
      collect: returns the server's counts.

    Attributes:
      health: whether services serve.
      inference: unary methods of the inference service, by their names.
      check: the unary method of the health service.
    """

    def __init__(self, service: Service, collect: CollectStats) -> None:
        self._service = service
        self._reflection = ReflectionServicer((INFERENCE, HEALTH, REFLECTION), POOL)
        self._watches = 0
        self.health = Health(service, (INFERENCE,))
        self.inference: dict[str, Unary] = Metadata(service, collect).methods()
        self.check = unary(HealthCheckRequest, lambda request: self.health.check(request.service))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count a watch within the context.

        Raises:
          Overloaded: there are too many.
        """
        self._watches += 1
        try:
            if self._watches > WATCHES:
                raise Overloaded(f"watches: expected at most {WATCHES} at once, got more")
            yield
        finally:
            self._watches -= 1

    async def watch(self, data: bytes) -> AsyncIterator[bytes]:
        """Yield the answers to a request to watch, until the server stops.

        Raises:
          MalformedRequest: the bytes are no such request.
        """
        request = oip_grpc.parse(HealthCheckRequest, data)
        self._service.metrics.count_request("grpc", "OK")
        async for state in self.health.watch(request.service):
            yield state.SerializeToString()

    def reflect(self, data: bytes) -> bytes:
        """Return the answer to a request for reflection."""
        try:
            request = oip_grpc.parse(ServerReflectionRequest, data)
        except MalformedRequest as error:
            problem = ErrorResponse(error_code=_INVALID_ARGUMENT, error_message=str(error))
            return ServerReflectionResponse(error_response=problem).SerializeToString()  # type: ignore[no-any-return]
        answers = self._reflection.ServerReflectionInfo(iter((request,)), None)
        return b"".join(each.SerializeToString() for each in answers)


def stopping() -> Draining:
    """Return the error of calls that arrive while the server stops."""
    return Draining("the server is stopping")
