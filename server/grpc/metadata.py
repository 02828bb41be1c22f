"""The methods of the Open Inference Protocol that ask about the server and its model."""

from collections.abc import Callable
from typing import Any

from server.batching.service import Service
from server.batching.service_state import State
from server.observability.prometheus import statistics
from server.observability.snapshot import CollectStats
from server.protocols import oip, oip_grpc
from server.protos import inference_pb2 as pb

# What a unary method makes of a message's bytes: those of its answer.
Unary = Callable[[bytes], bytes]


class Metadata:
    """Answers from what is known, without a run of the model.

    Args:
      service: whose model it is.
      collect: returns the server's counts.
    """

    def __init__(self, service: Service, collect: CollectStats) -> None:
        self._service = service
        self._collect = collect

    def methods(self) -> dict[str, Unary]:
        """Return the methods by their names in the protocol."""
        return {
            "ServerLive": unary(pb.ServerLiveRequest, self._live),
            "ServerReady": unary(pb.ServerReadyRequest, self._ready),
            "ModelReady": unary(pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": unary(pb.ServerMetadataRequest, self._about),
            "ModelMetadata": unary(pb.ModelMetadataRequest, self._metadata),
            "ModelStatistics": unary(pb.ModelStatisticsRequest, self._statistics),
        }

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
            name=oip.SERVER_NAME, version=oip.SERVER_VERSION, extensions=oip.EXTENSIONS
        )

    def _metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        manifest = self._service.model.manifest
        oip.check_names(manifest, request.name, request.version)
        return pb.ModelMetadataResponse(**oip.metadata(manifest))

    def _statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        manifest = self._service.model.manifest
        if request.name:
            oip.check_names(manifest, request.name, request.version)
        counts = statistics(self._collect().metrics, manifest.name, manifest.version)
        return pb.ModelStatisticsResponse(**counts)


def unary[M](kind: type[M], handler: Callable[[M], Any]) -> Unary:
    """Return a method that reads a message and writes what `handler` returns for it.

    It raises MalformedRequest where the message does not parse.
    """

    def call(data: bytes) -> bytes:
        return handler(oip_grpc.parse(kind, data)).SerializeToString()  # type: ignore[no-any-return]

    return call
