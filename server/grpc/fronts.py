"""The fronts of gRPC, of which a server has one."""

from typing import Protocol

from server.batching.service import Service
from server.config import ConfigError, ServerConfig
from server.grpc.server import GrpcServer
from server.observability.snapshot import CollectStats


class GrpcFront(Protocol):
    """A gRPC server before a service."""

    async def start(self) -> int:
        """Start to accept calls; return the port, or raise ConfigError."""

    async def leave(self, grace_s: float) -> None:
        """Answer the open calls, refuse new ones, and close the port."""


def make_front(
    service: Service, config: ServerConfig, figures: CollectStats | None = None
) -> GrpcFront:
    """Return the front that is configured.

    Raises:
      ConfigError: its package is not installed.
    """
    if config.grpc_front == "aio":
        return GrpcServer(service, config, figures)
    try:
        from server.grpc.http2_server import Http2Server
    except ModuleNotFoundError as error:
        if error.name != "ngh2":
            raise
        raise ConfigError(
            "grpc_front: expected the package ngh2 for ngh2, got none; pip install "
            "'hloserve[fastgrpc]', or pass --grpc-front aio"
        ) from None
    return Http2Server(service, config, figures)
