"""The containers that the manifests describe serve a bundle, as they are configured there."""

import json
import os
import socket

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pytest import fixture, mark
from tritonclient.grpc import InferenceServerClient, InferInput

from runtime.bundle import open_bundle
from tests.deploy.resources import load
from tests.serving import TIMEOUT_S, serving

ROWS = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
MANIFESTS = {
    "kubernetes": "kubernetes/deployment.yaml",
    "kserve": "kserve/runtime.yaml",
    "kserve-grpc": "kserve/runtime-grpc.yaml",
}

pytestmark = mark.e2e


def container_of(manifest):
    """Return the one container of a manifest."""
    spec = load(manifest)[-1]["spec"]
    [container] = (
        spec["template"]["spec"]["containers"] if "template" in spec else spec["containers"]
    )
    return container


@fixture(scope="module", params=MANIFESTS)
def container(request):
    """A container as its manifest describes it."""
    return container_of(MANIFESTS[request.param])


@fixture(scope="module")
def served(container, classifier_bundle, tmp_path_factory):
    """The container's command with its environment, but a bundle and a cache of here."""
    assert {"command", "args"}.isdisjoint(container)  # so it is the image's entrypoint
    environ = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environ["HLOSERVE_BUNDLE"] in ("gs://BUCKET/models/iris/1", "/mnt/models")
    environ["HLOSERVE_BUNDLE"] = str(classifier_bundle)
    environ["HLOSERVE_REQUIRE_DIGEST"] = f"sha256:{open_bundle(classifier_bundle).digest}"
    if "HLOSERVE_CACHE_DIR" in environ:
        environ["HLOSERVE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    nothing_else = {"env": {"PATH": os.environ["PATH"]}}
    with serving(options=nothing_else, **environ) as served:
        yield served


@mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_are_answered(served, container, probe):
    """Every probe of the container succeeds against a server that is ready."""
    if probe == "startupProbe" and probe not in container:
        probe = "readinessProbe"  # KServe's readiness probe waits for the start
    asked = container[probe]
    if "httpGet" in asked:
        served.get(asked["httpGet"]["path"])
    elif "tcpSocket" in asked:
        socket.create_connection(("127.0.0.1", served.grpc_port), TIMEOUT_S).close()
    else:
        assert asked["grpc"].keys() == {"port"}  # of no service in particular
        with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_log_is_json(container):
    """The log of the container is what Cloud Logging and its like read."""
    assert {"name": "HLOSERVE_LOG_FORMAT", "value": "json"} in container["env"]


def test_models_are_asked_over_v1_and_v2(served):
    """KServe's first protocol and the Open Inference Protocol give the same answer."""
    status, first = served.post({"instances": ROWS}, "/v1/models/classifier:predict")
    assert status == 200
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": ROWS}
    status, second = served.post({"inputs": [tensor]}, "/v2/models/classifier/infer")
    assert status == 200

    best = [prediction["label"] for prediction in first["predictions"]]
    [output] = second["outputs"]
    logits = np.reshape(output["data"], output["shape"])
    assert [("red", "green", "blue")[row.argmax()] for row in logits] == best


def test_models_are_asked_over_grpc(served):
    """The Open Inference Protocol returns the same outputs over gRPC as over HTTP."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": ROWS}
    _, answer = served.post({"inputs": [tensor]}, "/v2/models/classifier/infer")
    given = InferInput("x", [2, 4], "FP32").set_data_from_numpy(np.array(ROWS, np.float32))
    with InferenceServerClient(f"127.0.0.1:{served.grpc_port}") as client:
        found = client.infer("classifier", [given]).as_numpy(answer["outputs"][0]["name"])

    assert found.ravel().tolist() == np.float32(answer["outputs"][0]["data"]).tolist()


def test_another_name_than_the_bundles_is_reported(served):
    """A request for the InferenceService's name, where the bundle has another, is refused with the right name."""
    for path, body in (
        ("/v1/models/my-service:predict", {"instances": ROWS}),
        ("/v2/models/my-service/infer", {"inputs": []}),
    ):
        status, answer = served.post(body, path)

        assert status == 404
        assert "model: expected 'classifier', got 'my-service'" in json.dumps(answer)
