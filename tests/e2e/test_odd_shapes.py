"""Inputs of any shape, in any protocol: none of them compiles a program."""

import base64
import contextlib
import http.client
import itertools
import json

import grpc
import numpy as np
from pytest import fixture, mark

from runtime import InvalidInput, load
from server.grpc.server import INFERENCE
from server.protos import inference_pb2 as pb
from tests.serving import serving

pytestmark = mark.e2e

# Buckets are 1 and 4 rows by 4 and 8 tokens: none, each, between, beyond, and beyond the limit.
MAX_ROWS = 11
ROWS = range(MAX_ROWS + 2)
LENGTHS = range(10)
LISTS = ("vertex", "vertex b64", "tfserving rows", "tfserving columns")
DATATYPE = {"datatype": "INT32"}


@fixture(scope="module")
def server(tagger_bundle):
    """A server of ids and a mask, int32[_, seq], that takes eleven rows at most."""
    with serving("--bundle", str(tagger_bundle), "--max-request-rows", str(MAX_ROWS)) as served:
        yield served


@fixture(scope="module")
def infer(server):
    """Calls ModelInfer; return the name of the status, and the message."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(
            f"/{INFERENCE}/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )

        def run(message):
            try:
                return "OK", call(message)
            except grpc.RpcError as error:
                return error.code().name, None

        yield run


def tokens(rows, length):
    """Make ids in range, and the mask of all of them."""
    ids = np.arange(rows * length, dtype=np.int32).reshape(rows, length) % 10
    return {"ids": ids, "mask": np.ones_like(ids)}


def in_base64(array):
    """Write a row's tensor as bytes."""
    return {"b64": base64.b64encode(array.tobytes()).decode()}


def instances(arrays, write=lambda array: array.tolist()):
    """Write rows one by one."""
    rows = zip(arrays["ids"], arrays["mask"], strict=True)
    return [{"ids": write(ids), "mask": write(mask)} for ids, mask in rows]


def oip(arrays):
    """Write tensors as JSON."""
    return [
        {"name": name, "shape": array.shape, "data": array.ravel().tolist(), **DATATYPE}
        for name, array in arrays.items()
    ]


def sized(array):
    """Return how many bytes a tensor has."""
    return {"binary_data_size": array.nbytes}


def binary(arrays):
    """Write tensors as bytes behind their JSON; return the body and the length of its JSON."""
    inputs = [
        {"name": name, "shape": array.shape, "parameters": sized(array), **DATATYPE}
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(array.tobytes() for array in arrays.values()), len(head)


def asked(arrays):
    """Return the same rows in every way that HTTP has: path, body, headers."""
    rows = instances(arrays)
    octets, length = binary(arrays)
    columns = {name: array.tolist() for name, array in arrays.items()}
    named = {"inference-header-content-length": str(length)}
    vertex = f"application/vnd.vertex-ai-triton.binary+json;json-header-size={length}"
    encoded = {"instances": instances(arrays, in_base64)}
    return {
        "vertex": ("/predict", {"instances": rows}, {}),
        "vertex b64": ("/predict", encoded, {}),
        "vertex oip": ("/predict", {"inputs": oip(arrays)}, {}),
        "vertex binary": ("/predict", octets, {"content-type": vertex}),
        "tfserving rows": ("/v1/models/tagger:predict", {"instances": rows}, {}),
        "tfserving columns": ("/v1/models/tagger:predict", {"inputs": columns}, {}),
        "oip": ("/v2/models/tagger/infer", {"inputs": oip(arrays)}, {}),
        "oip versioned": ("/v2/models/tagger/versions/1/infer", {"inputs": oip(arrays)}, {}),
        "oip binary": ("/v2/models/tagger/infer", octets, named),
    }


def messages(arrays):
    """Return the same rows in both ways that gRPC has."""
    for typed in (False, True):
        message = pb.ModelInferRequest(model_name="tagger")
        for name, array in arrays.items():
            tensor = message.inputs.add(name=name, shape=array.shape, **DATATYPE)
            if typed:
                tensor.contents.int_contents.extend(array.ravel().tolist())
            else:
                message.raw_input_contents.append(array.tobytes())
        yield message


def means(answer):
    """Return the output of that name, whatever the dialect; no rows have none in some."""
    if "predictions" in answer:
        return [prediction["mean"] for prediction in answer["predictions"]]
    if "outputs" in answer and isinstance(answer["outputs"], dict):
        return answer["outputs"]["mean"]
    (mean,) = (output for output in answer["outputs"] if output["name"] == "mean")
    return np.reshape(mean["data"], mean["shape"])


def test_nothing_is_compiled_for_any_shape(server, infer, tagger_bundle):
    """Every number of rows by every length is answered, or refused, by the programs there are."""
    model = load(tagger_bundle, "cpu")
    wrong = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        for rows, length in itertools.product(ROWS, LENGTHS):
            arrays = tokens(rows, length)
            expected = expected_of(model, arrays)
            for dialect, (path, body, headers) in asked(arrays).items():
                data = body if isinstance(body, bytes) else json.dumps(body)
                connection.request("POST", path, data, headers)
                answer = connection.getresponse()
                got = json.loads(answer.read())
                # Lists of no rows have no length that could be wrong.
                wanted = expected if rows or dialect not in LISTS else np.empty((0, 6))
                if not fits(wanted, means(got) if answer.status == 200 else None):
                    wrong.append((rows, length, dialect, answer.status, got))
            for message in messages(arrays):
                status, got = infer(message)
                if not fits(expected, mean_of(got) if status == "OK" else None):
                    wrong.append((rows, length, "grpc", status))

    assert wrong == []
    assert server.counts()["hloserve_compiles_after_ready_total"] == 0


def expected_of(model, arrays):
    """Return what the model answers; None if it refuses."""
    if len(arrays["ids"]) > MAX_ROWS:
        return None
    try:
        return model.predict(arrays)["mean"]
    except InvalidInput:
        return None


def mean_of(message):
    """Return the output of that name."""
    index = [output.name for output in message.outputs].index("mean")
    return np.frombuffer(message.raw_output_contents[index], np.float32).reshape(-1, 6)


def fits(expected, got):
    """Whether an answer equals the model's; None is a refusal."""
    if expected is None or got is None:
        return expected is got
    array = np.float32(got)
    same = array.size == expected.size
    return same and np.allclose(array.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
