"""The gRPC server beside inferences: metadata, health, deadlines, start and stop."""

import asyncio

import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2
from pytest import fixture, mark, raises

from server.config import ConfigError, ServerConfig
from server.grpc.options import address
from server.grpc.services import HEALTH, INFERENCE
from server.protocols.oip import SERVER_NAME, SERVER_VERSION
from server.protos import inference_pb2 as pb
from tests.server.fakes import FakeModel, Gate
from tests.server.grpc_harness import FRONTS, GrpcHarness, array_of, refused, rows

pytestmark = mark.usefixtures("front")

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


@fixture
def model():
    """A model with a bucket of 1 and one of 4."""
    return FakeModel()


@fixture
def grpc_server(model):
    """A server with that model."""
    grpc_server = GrpcHarness(model)
    yield grpc_server
    grpc_server.close()


@fixture
def loading():
    """A server whose model is still being loaded."""
    grpc_server = GrpcHarness(load=False)
    yield grpc_server
    grpc_server.close()


def check(grpc_server, name=""):
    """Request a service's health."""
    return grpc_server.call_unary(
        "Check", HealthCheckRequest(service=name), HealthCheckResponse, HEALTH
    ).status


def watch(grpc_server, name=""):
    """Watch a service's health; return the call."""
    return grpc_server.channel.unary_stream(
        f"/{HEALTH}/Watch",
        HealthCheckRequest.SerializeToString,
        HealthCheckResponse.FromString,
    )(HealthCheckRequest(service=name), timeout=30)


def is_ready(grpc_server):
    """Return whether the server and the model report ready."""
    return (
        grpc_server.call_unary(
            "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse
        ).ready,
        grpc_server.call_unary(
            "ModelReady", pb.ModelReadyRequest(name="fake"), pb.ModelReadyResponse
        ).ready,
    )


def test_a_ready_server_says_so(grpc_server):
    """Live, ready, and serving by every name."""
    assert grpc_server.call_unary("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
    assert is_ready(grpc_server) == (True, True)
    assert [check(grpc_server, name) for name in ("", INFERENCE, "fake")] == [SERVING] * 3


def test_a_server_that_loads_is_live_but_not_ready(loading):
    """While no model is loaded the server is live, and refuses inferences with UNAVAILABLE."""
    text = "the model is still being loaded; try again shortly"

    assert loading.call_unary("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
    assert is_ready(loading) == (False, False)
    assert check(loading) == NOT_SERVING
    assert refused(lambda: check(loading, "fake"))[0] == "NOT_FOUND"
    assert refused(lambda: loading.ask(1)) == ("UNAVAILABLE", text)
    metadata = pb.ModelMetadataRequest(name="fake")
    assert refused(
        lambda: loading.call_unary("ModelMetadata", metadata, pb.ModelMetadataResponse)
    ) == (
        "UNAVAILABLE",
        text,
    )


def test_a_draining_server_answers_but_is_not_ready(grpc_server):
    """While it drains, requests are answered; a stopping server refuses them."""
    grpc_server.on_loop(grpc_server.service.drain)
    assert is_ready(grpc_server) == (False, False)
    assert check(grpc_server, "fake") == NOT_SERVING
    assert grpc_server.ask(1) == [1.0]

    grpc_server.on_loop(grpc_server.service.stop)
    assert refused(lambda: grpc_server.ask(2)) == ("UNAVAILABLE", "the server is stopping")


def test_a_watch_reports_every_change(loading):
    """A watch begins with the current state, and reports loading, ready and draining as they occur."""
    whole, named = watch(loading), watch(loading, "fake")
    seen = [next(whole).status], [next(named).status]

    loading.running.open(loading.model)
    seen[0].append(next(whole).status)
    seen[1].append(next(named).status)
    loading.on_loop(loading.service.drain)
    seen[0].append(next(whole).status)
    seen[1].append(next(named).status)

    assert seen == ([NOT_SERVING, SERVING, NOT_SERVING], [UNKNOWN, SERVING, NOT_SERVING])


def test_a_watch_outlives_the_other_watches(grpc_server):
    """A watcher that disconnects does not affect the others."""
    leaving, staying = watch(grpc_server), watch(grpc_server)
    assert next(leaving).status == next(staying).status == SERVING

    leaving.cancel()
    grpc_server.on_loop(grpc_server.service.drain)

    assert next(staying).status == NOT_SERVING


def test_a_stop_ends_watches(grpc_server):
    """An open watch does not delay the server's stop."""
    watching = watch(grpc_server)
    assert next(watching).status == SERVING

    grpc_server.running.wait(grpc_server.server.stop(30))

    assert list(watching) == []


def test_the_server_and_the_model_describe_themselves(grpc_server):
    """Metadata report names, versions, extensions, and the tensors of the signature."""
    server = grpc_server.call_unary(
        "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse
    )
    model = grpc_server.call_unary(
        "ModelMetadata", pb.ModelMetadataRequest(name="fake"), pb.ModelMetadataResponse
    )

    assert (server.name, server.version) == (SERVER_NAME, SERVER_VERSION)
    assert list(server.extensions) == ["binary_tensor_data", "statistics"]
    tensor = pb.ModelMetadataResponse.TensorMetadata
    assert model == pb.ModelMetadataResponse(
        name="fake",
        versions=["1"],
        platform="jax_stablehlo",
        inputs=[tensor(name="x", datatype="FP32", shape=[-1, 2])],
        outputs=[tensor(name="y", datatype="FP32", shape=[-1])],
    )


def test_statistics_count_what_was_done(grpc_server):
    """Statistics report rows, batches and how long each part took."""
    grpc_server.ask(1)
    grpc_server.ask(1, 2, 3)

    for name in ("", "fake"):
        answer = grpc_server.call_unary(
            "ModelStatistics", pb.ModelStatisticsRequest(name=name), pb.ModelStatisticsResponse
        )
        (stats,) = answer.model_stats
        assert (stats.name, stats.version) == ("fake", "1")
        assert (stats.inference_count, stats.execution_count) == (4, 2)
        assert stats.inference_stats.success.count == 2
        assert stats.inference_stats.success.ns > stats.inference_stats.compute_infer.ns > 0
        assert [batch.batch_size for batch in stats.batch_stats] == [1, 4]


@mark.parametrize("name", ["ModelReady", "ModelMetadata", "ModelStatistics"])
def test_another_model_is_not_found(grpc_server, name):
    """Any method for another model or version returns NOT_FOUND."""
    kind, answer = getattr(pb, f"{name}Request"), getattr(pb, f"{name}Response")

    def ask(**model):
        return refused(lambda: grpc_server.call_unary(name, kind(**model), answer))

    assert ask(name="other") == ("NOT_FOUND", "model: expected 'fake', got 'other'")
    assert ask(name="fake", version="2") == ("NOT_FOUND", "model version: expected '1', got '2'")


@mark.parametrize("name", ["ModelConfig", "RepositoryIndex", "SystemSharedMemoryRegister", "No"])
def test_other_methods_of_the_service_are_not_served(grpc_server, name):
    """Methods of Triton's other extensions return UNIMPLEMENTED with a message of this server's own."""
    assert refused(
        lambda: grpc_server.call_unary(name, pb.ServerLiveRequest(), pb.ServerLiveResponse)
    ) == (
        "UNIMPLEMENTED",
        "this method of the protocol is not served; ServerMetadata lists the extensions that are",
    )
    assert grpc_server.service.metrics.requests == {("grpc", "UNIMPLEMENTED"): 1}


def test_another_service_is_not_there(grpc_server):
    """A method of an unknown service returns UNIMPLEMENTED, too."""
    status, _ = refused(
        lambda: grpc_server.call_unary(
            "Do", pb.ServerLiveRequest(), pb.ServerLiveResponse, "a.Service"
        )
    )

    assert status == "UNIMPLEMENTED"


def test_bytes_that_are_no_message_are_refused(grpc_server):
    """A malformed message for a metadata method is the client's error."""
    call = grpc_server.channel.unary_unary(f"/{INFERENCE}/ModelReady")

    assert refused(lambda: call(b"\xff\xff", timeout=30)) == (
        "INVALID_ARGUMENT",
        "message: expected a ModelReadyRequest, got other bytes",
    )


def reflection(grpc_server):
    """Return the method of reflection."""
    return grpc_server.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )


def test_reflection_can_be_left_out(model):
    """Without reflection services are not listed, and inferences are answered."""
    grpc_server = GrpcHarness(model, reflection=False)
    question = reflection_pb2.ServerReflectionRequest(list_services="")

    code, _ = refused(lambda: list(reflection(grpc_server)(iter([question]), timeout=30)))
    answer = grpc_server.ask(1, 2)
    grpc_server.close()

    assert code == "UNIMPLEMENTED"
    assert answer == [1.0, 2.0]


def test_reflection_lists_the_services_and_their_messages(grpc_server):
    """A client without the .proto learns every service, and the file that declares it."""
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            for name in (INFERENCE, HEALTH)
        ),
    ]

    listed, *files = reflection(grpc_server)(iter(questions))

    assert [service.name for service in listed.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    packages = [
        FileDescriptorProto.FromString(
            file.file_descriptor_response.file_descriptor_proto[0]
        ).package
        for file in files
    ]
    assert packages == ["inference", "grpc.health.v1"]


def test_reflection_answers_bytes_that_are_no_question(grpc_server):
    """A malformed message on a reflection stream is answered with an error, and the stream goes on."""
    ask = grpc_server.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    question = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()

    bad, good = ask(iter([b"\xff\xff", question]), timeout=30)

    assert bad.error_response.error_code == 3
    assert bad.error_response.error_message == (
        "message: expected a ServerReflectionRequest, got other bytes"
    )
    assert len(good.list_services_response.service) == 3


def waiting(grpc_server, count):
    """Wait until so many rows are in the queue."""
    while grpc_server.on_loop(lambda: grpc_server.service.queued_rows) != count:
        pass


def test_a_request_whose_client_cancels_leaves_the_queue(grpc_server, model):
    """A cancelled request does not run, and is counted as canceled."""
    model.before = gate = Gate()
    first = grpc_server.infer.future(rows(1), timeout=30)
    grpc_server.running.wait(gate.reached())
    second = grpc_server.infer.future(rows(2), timeout=30)
    waiting(grpc_server, 1)

    second.cancel()
    waiting(grpc_server, 0)
    gate.open(runs=2)

    assert array_of(first.result(), "y", np.float32).tolist() == [1.0]
    assert grpc_server.ask(3) == [3.0]
    assert [rows for _, rows in model.ran] == [[[1, 0]], [[3, 0]]]
    assert grpc_server.service.metrics.failures == {"canceled": 1}
    assert grpc_server.service.metrics.requests["grpc", "CANCELLED"] == 1


@mark.parametrize(
    ("request_", "deadline_s"),
    [(rows(2), 0.1), (rows(2, timeout=("int64", 100_000)), 30), (rows(2, timeout=("uint64", 100_000)), 30)],
    ids=["deadline", "parameter", "unsigned"],
)  # fmt: skip
def test_a_request_is_answered_at_its_deadline(grpc_server, model, request_, deadline_s):
    """A request that waits beyond its deadline leaves the queue, and does not run."""
    model.before = gate = Gate()
    first = grpc_server.infer.future(rows(1), timeout=30)
    grpc_server.running.wait(gate.reached())

    status, _ = refused(lambda: grpc_server.infer(request_, timeout=deadline_s))
    waiting(grpc_server, 0)
    gate.open(runs=1)

    assert status == "DEADLINE_EXCEEDED"
    assert array_of(first.result(), "y", np.float32).tolist() == [1.0]
    assert len(model.ran) == 1
    assert grpc_server.service.metrics.failures == {"canceled": 1}


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    """Where a batch takes longer than the client's timeout, the request is not even queued."""
    grpc_server = GrpcHarness(FakeModel(costs={1: 60e6, 4: 60e6}))

    status, text = refused(lambda: grpc_server.infer(rows(1), timeout=30))
    grpc_server.close()

    assert status == "DEADLINE_EXCEEDED"
    assert text.endswith("is less than a batch takes here, 6e+04 ms")
    assert grpc_server.model.ran == []


def test_a_stop_answers_what_is_in(grpc_server, model):
    """A server that stops answers its open calls, and accepts no more."""
    model.before = gate = Gate()
    first = grpc_server.infer.future(rows(1), timeout=30)
    grpc_server.running.wait(gate.reached())

    stopping = asyncio.run_coroutine_threadsafe(
        grpc_server.server.stop(30), grpc_server.running.loop
    )
    gate.open()

    assert array_of(first.result(), "y", np.float32).tolist() == [1.0]
    stopping.result(30)
    assert refused(lambda: grpc_server.ask(2))[0] == "UNAVAILABLE"


def test_a_port_that_is_taken_is_refused(grpc_server):
    """Two servers never share a port silently, and the error names the port."""
    config = ServerConfig(
        bundle="unused", host="127.0.0.1", grpc_port=grpc_server.port, processes=1
    )

    async def start():
        await FRONTS[GrpcHarness.front](grpc_server.service, config).start()

    expected = f"^listen on 127.0.0.1:{grpc_server.port}: the address is not free$"
    with raises(ConfigError, match=expected):
        grpc_server.running.wait(start())


@mark.parametrize(
    ("host", "target"), [("10.0.0.1", "10.0.0.1:8001"), ("::", "[::]:8001"), ("a.b", "a.b:8001")]
)
def test_an_address_is_written_as_grpc_reads_it(host, target):
    """A host with colons in it is an IPv6 address, which goes in brackets."""
    assert address(host, 8001) == target
