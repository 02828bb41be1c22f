"""NaN and infinity in answers: JSON by policy or declaration, bytes as they are."""

import contextlib

import grpc
import numpy as np
from pytest import fixture, mark

from export import export_model
from server.grpc.server import INFERENCE
from server.protos import inference_pb2 as pb
from tests.serving import ROOT, serving

pytestmark = mark.e2e

ROWS = np.array([0.0, 2.0, -0.0, -4.0], np.float32)
QUOTIENT = np.array([np.inf, 0.5, -np.inf, -0.25], np.float32)
SIGN = np.array([np.nan, 1.0, np.nan, -1.0], np.float32)
POLICIES = ("null", "string", "error")
# How each policy writes the first row and the third; `error` writes neither.
WRITTEN = {
    "null": ((None, None), (None, None)),
    "string": (("Infinity", "NaN"), ("-Infinity", "NaN")),
}


def divide(params, x):
    """Divide by a number and by its size: infinity and NaN for zero."""
    return {"quotient": params["one"] / x, "sign": x / abs(x)}


@fixture(scope="module")
def servers(tmp_path_factory):
    """A server for each policy."""
    bundle = tmp_path_factory.mktemp("nonfinite") / "bundle"
    export_model(
        divide,
        {"one": np.ones((), np.float32)},
        inputs=["x:float32[_]"],
        buckets=(1, 4),
        platforms=("cpu",),
        name="divide",
        out=bundle,
    )
    with contextlib.ExitStack() as stack:
        yield {
            policy: stack.enter_context(serving("--bundle", str(bundle), "--nonfinite", policy))
            for policy in POLICIES
        }


def requests(rows):
    """Return the routes that answer in JSON, each with a request for these rows."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows)], "data": rows.tolist()}
    return {
        "/predict": {"instances": rows.tolist()},
        "/v1/models/divide:predict": {"inputs": rows.tolist()},
        "/v2/models/divide/infer": {"inputs": [tensor]},
    }


def pairs(answer):
    """Return quotient and sign of each row, whatever the dialect."""
    if "predictions" in answer:
        return [(row["quotient"], row["sign"]) for row in answer["predictions"]]
    columns = answer["outputs"]
    if isinstance(columns, list):
        columns = {column["name"]: column["data"] for column in columns}
    return list(zip(columns["quotient"], columns["sign"], strict=True))


@mark.parametrize("path", requests(ROWS))
@mark.parametrize("policy", WRITTEN)
def test_json_has_what_the_policy_says(servers, policy, path):
    """NaN and infinity are null or words, in the values that are such; the others are numbers."""
    status, answer = servers[policy].post(requests(ROWS)[path], path)

    first, third = WRITTEN[policy]
    assert status == 200
    assert pairs(answer) == [first, (0.5, 1.0), third, (-0.25, -1.0)]


@mark.parametrize("path", requests(ROWS))
def test_json_is_refused_where_the_policy_says_so(servers, path):
    """The request fails that holds them, in words; one that does not is answered."""
    status, answer = servers["error"].post(requests(ROWS)[path], path)
    good, finite = servers["error"].post(requests(ROWS[1:2])[path], path)

    assert (status, answer["code"]) == (500, "non_finite_output")
    assert answer["error"] == "the answer holds NaN or infinity, which JSON has no way to write"
    assert (good, pairs(finite)) == (200, [(0.5, 1.0)])


@mark.parametrize("policy", POLICIES)
def test_bytes_are_bit_for_bit(servers, policy):
    """Over gRPC nothing is written in another way, whatever the policy."""
    message = pb.ModelInferRequest(model_name="divide")
    message.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
    message.raw_input_contents.append(ROWS.tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{servers[policy].grpc_port}") as channel:
        answer = channel.unary_unary(
            f"/{INFERENCE}/ModelInfer", None, pb.ModelInferResponse.FromString
        )(message.SerializeToString())

    found = {
        output.name: np.frombuffer(data, np.float32)
        for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    assert found["quotient"].tobytes() == QUOTIENT.tobytes()
    np.testing.assert_array_equal(found["sign"], SIGN)


def test_answers_that_hold_them_are_counted(servers):
    """Each answer with NaN or infinity counts once, one without does not."""
    served = servers["null"]
    name = "hloserve_nonfinite_outputs_total"
    before = served.counts()[name]
    served.post({"instances": ROWS.tolist()})
    served.post({"instances": ROWS[1:2].tolist()})

    assert served.counts()[name] == before + 1


FROZEN = ROOT / "tests" / "data" / "bundles" / "format-4_2026-11-30"
IDS = np.array([[8, 0, 3]], np.int32)
LOGITS, SCORES = [0.515625, "-Infinity", 0.578125], [0.375, "-Infinity", 0.140625]


@mark.parametrize("policy", POLICIES)
def test_a_bundle_that_declares_infinities_is_served(policy):
    """Masked logits and scores are answered in every protocol, whatever the policy is."""
    tensor = {"name": "ids", "datatype": "INT32", "shape": [1, 3], "data": IDS.tolist()}
    message = pb.ModelInferRequest(model_name="choose")
    message.inputs.add(name="ids", datatype="INT32", shape=IDS.shape)
    message.raw_input_contents.append(IDS.tobytes())
    with serving("--bundle", str(FROZEN), "--nonfinite", policy) as served:
        _, vertex = served.post({"instances": IDS.tolist()})
        _, columns = served.post({"inputs": IDS.tolist()}, "/v1/models/choose:predict")
        _, oip = served.post({"inputs": [tensor]}, "/v2/models/choose/infer")
        with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
            answer = channel.unary_unary(
                f"/{INFERENCE}/ModelInfer", None, pb.ModelInferResponse.FromString
            )(message.SerializeToString())
        counted = served.counts()["hloserve_nonfinite_outputs_total"]
        page = served.get("/")

    (prediction,) = vertex["predictions"]
    assert (prediction["logits"]["label"], prediction["scores"]) == ("go", SCORES)
    assert prediction["logits"]["probabilities"]["never"] == 0
    assert columns == {"outputs": {"logits": [LOGITS], "scores": [SCORES]}}
    assert [output["data"] for output in oip["outputs"]] == [LOGITS, SCORES]
    assert [np.frombuffer(raw, np.float32).tolist() for raw in answer.raw_output_contents] == [
        [float(value) for value in values] for values in (LOGITS, SCORES)
    ]
    assert counted == 0
    assert "logits: float32[_, 3] (may be infinite)" in page
