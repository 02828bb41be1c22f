"""grpc.health.v1: the health checks of load balancers and Kubernetes.

Known are the server as a whole, which is the empty name, the inference service, and the model
once it is loaded. All of them serve while the model is ready, and none otherwise.

The servicer of grpcio-health-checking is not used: when one of several watchers of
a service leaves, the others hear nothing any more.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckResponse

from server.batching.service import Service
from server.batching.service_state import State
from server.errors import NotFound


class Health:
    """Reports the service's state, and its changes.

    Args:
      service: whose state is reported.
      names: known beside the empty one and the model's.
    """

    def __init__(self, service: Service, names: tuple[str, ...]) -> None:
        self._service = service
        self._names = ("", *names)
        self._turned = asyncio.Event()
        self._stopped = False
        service.on_state_change(self._wake)

    def check(self, name: str) -> HealthCheckResponse:
        """Return whether a service serves.

        Raises:
          NotFound: there is no such service.
        """
        status = self._status(name)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise NotFound(f"health: expected a service or the model, got {name[:100]!r}")
        return HealthCheckResponse(status=status)

    async def watch(self, name: str) -> AsyncIterator[HealthCheckResponse]:
        """Yield whether a service serves, now and at every change, until `stop`."""
        last = None
        while not self._stopped:
            turned = self._turned
            status = self._status(name)
            if status != last:
                last = status
                yield HealthCheckResponse(status=status)
            await turned.wait()

    def stop(self) -> None:
        """End every watch."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        self._turned.set()
        self._turned = asyncio.Event()

    def _status(self, name: str) -> Any:  # HealthCheckResponse's ServingStatus, which is not typed
        known = name in self._names or (
            self._service.loaded and name == self._service.model.manifest.name
        )
        if not known:
            return HealthCheckResponse.SERVICE_UNKNOWN
        if self._service.state is State.READY:
            return HealthCheckResponse.SERVING
        return HealthCheckResponse.NOT_SERVING
