"""The Open Inference Protocol over HTTP: JSON, and binary tensors behind it."""

import contextlib

import numpy as np
from pytest import fixture, mark

from runtime.signature import DTYPE_BYTES
from runtime.tensors import numpy_dtype
from server.protocols.oip import DATATYPES
from tests.server.fakes import ECHO, EVERY, FakeModel, Running, signature
from tests.server.flask_client import client_for, refused
from tests.server.oip_client import GOOD, INFER, LENGTH, SUMS, X, packed, tensor, unpacked


@fixture
def client(running):
    """Flask's test client, in front of a model that sums rows."""
    return client_for(running, FakeModel())


@mark.parametrize("data", [[[1, 2], [3, 4]], [1, 2, 3, 4], [1.0, 2, 3.0, 4]])
@mark.parametrize("path", [INFER, "/v2/models/fake/versions/1/infer", "/predict"])
def test_json_tensors_are_answered(client, path, data):
    """Data may be nested as the shape says or flat; the route may name the version or be Vertex's."""
    answer = client.post(path, json={"id": "seven", "inputs": [X | {"data": data}]})

    assert answer.get_json() == {
        "model_name": "fake",
        "model_version": "1",
        "id": "seven",
        "outputs": [SUMS],
    }


def test_null_stands_for_what_is_left_out(client):
    """Clients that write null for an absent id, parameters or outputs are understood."""
    body = {
        "id": None,
        "parameters": None,
        "outputs": None,
        "inputs": [X | {"parameters": None}],
    }

    assert client.post(INFER, json=body).get_json()["outputs"] == [SUMS]


def test_binary_tensors_go_both_ways(client):
    """Binary inputs are accepted, and outputs are binary where the request asks for it."""
    x = np.float32([[1, 2], [3, 4]])
    body = {
        "inputs": [tensor(x)],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }

    message, found = unpacked(client.post(INFER, **packed(body, x)))

    assert np.frombuffer(found["y"], np.float32).tolist() == [3.0, 7.0]
    assert message["outputs"][0]["shape"] == [2]


@mark.parametrize(
    ("outputs", "parameters", "binary"),
    [
        (None, {"binary_data_output": True}, True),
        ([{"name": "y"}], {"binary_data_output": True}, True),
        ([{"name": "y", "parameters": {"binary_data": False}}], {"binary_data_output": True}, False),
        ([{"name": "y", "parameters": {"binary_data": True}}], {}, True),
        ([{"name": "y"}], {}, False),
        ([], {"binary_data_output": True}, True),
    ],
)  # fmt: skip
def test_each_output_says_how_it_comes_back(client, outputs, parameters, binary):
    """The request has a default for its outputs, which each output can override."""
    answer = client.post(INFER, json={**GOOD, "parameters": parameters, "outputs": outputs})

    assert answer.status_code == 200
    assert (answer.mimetype == "application/octet-stream") == binary


@mark.parametrize(
    "headers",
    [{LENGTH: "0"}, {"Content-Type": "application/vnd.vertex-ai-triton.binary+json;json-header-size=0"}],
)  # fmt: skip
@mark.parametrize("path", [INFER, "/predict"])
def test_a_body_can_be_the_only_input(client, path, headers):
    """A body of tensor bytes alone has as many rows as its size implies, and the response is bytes."""
    data = np.float32([[1, 2], [3, 4], [5, 6]]).tobytes()

    _, found = unpacked(client.post(path, data=data, headers=headers))

    assert np.frombuffer(found["y"], np.float32).tolist() == [3.0, 7.0, 11.0]


def test_a_body_alone_is_one_row_of_a_bucketed_axis(running):
    """With a bucketed axis bytes alone are one row, as long as they make it."""
    client = client_for(running, FakeModel(signature=ECHO))

    message, found = unpacked(
        client.post(INFER, data=np.int32([4, 5, 6]).tobytes(), headers={LENGTH: "0"})
    )

    assert [output["shape"] for output in message["outputs"]] == [[1, 3], [1]]
    assert np.frombuffer(found["total"], np.int32).tolist() == [15]


def test_every_dtype_goes_through_json(running):
    """What every dtype of the format has as JSON goes in and comes out."""
    client = client_for(running, FakeModel(signature=EVERY, function=lambda *arrays: arrays))
    arrays = {d: np.array([[0, 1], [1, 0]]).astype(numpy_dtype(d)) for d in DTYPE_BYTES}
    inputs = [
        {"name": d, "shape": [2, 2], "datatype": DATATYPES[d], "data": a.tolist()}
        for d, a in arrays.items()
    ]

    outputs = client.post(INFER, json={"inputs": inputs}).get_json()["outputs"]

    assert [output["name"] for output in outputs] == [f"{dtype}_out" for dtype in arrays]
    assert [output["data"] for output in outputs] == [a.ravel().tolist() for a in arrays.values()]
    assert [output["datatype"] for output in outputs] == [DATATYPES[dtype] for dtype in arrays]


def test_every_dtype_goes_through_bytes_bit_by_bit(running):
    """NaN with its payload, infinity and denormals come back exactly as they were sent."""
    client = client_for(running, FakeModel(signature=EVERY, function=lambda *arrays: arrays))
    rng = np.random.default_rng(0)
    arrays = {
        dtype: np.frombuffer(
            rng.integers(0, 2 if dtype == "bool" else 256, 4 * size, np.uint8).tobytes(),
            numpy_dtype(dtype),
        ).reshape(2, 2)
        for dtype, size in DTYPE_BYTES.items()
    }
    message = {
        "inputs": [tensor(array, name) for name, array in arrays.items()],
        "parameters": {"binary_data_output": True},
    }

    _, found = unpacked(client.post(INFER, **packed(message, *arrays.values())))

    assert found == {f"{name}_out": array.tobytes() for name, array in arrays.items()}


def test_json_and_binary_inputs_stand_side_by_side(running):
    """Tensors with data and tensors with bytes can be in one request, in any order."""
    both = signature(["a:int32[_]", "b:float32[_]", "c:int8[_]"], ["y:float32[_]"])
    model = FakeModel(signature=both, function=lambda a, b, c: ((a + b + c).astype(np.float32),))
    client = client_for(running, model)
    c, a = np.int8([1, 2]), np.int32([10, 20])
    b = {"name": "b", "shape": [2], "datatype": "FP32", "data": [0.5, 0.25]}
    message = {"inputs": [tensor(c, "c"), b, tensor(a, "a")]}

    answer = client.post(INFER, **packed(message, c, a))

    assert answer.get_json()["outputs"][0]["data"] == [11.5, 22.25]


@mark.parametrize("binary", [False, True])
def test_no_rows_are_answered_by_no_rows(client, binary):
    """A tensor of no rows gets outputs of no rows, in the right dtype and shape."""
    body = {
        "inputs": [{"name": "x", "shape": [0, 2], "datatype": "FP32", "data": []}],
        "parameters": {"binary_data_output": binary},
    }

    answer = client.post(INFER, json=body)

    if binary:
        message, found = unpacked(answer)
        assert found == {"y": b""}
    else:
        message = answer.get_json()
        assert message["outputs"][0].pop("data") == []
    assert message["outputs"][0]["shape"] == [0]
    assert message["outputs"][0]["datatype"] == "FP32"


def test_outputs_come_in_the_order_of_the_request(running):
    """Only the requested outputs are returned, in that order."""
    client = client_for(running, FakeModel(signature=ECHO))
    ids = {"name": "ids", "shape": [1, 2], "datatype": "INT32", "data": [1, 2]}

    def names(*wanted):
        body = {"inputs": [ids], "outputs": [{"name": name} for name in wanted]}
        return [output["name"] for output in client.post(INFER, json=body).get_json()["outputs"]]

    assert names("total", "echo") == ["total", "echo"]
    assert names("total") == ["total"]


def test_evidence_is_in_the_parameters_on_request(client):
    """A response has inference metadata where the request asks for it."""
    silent = client.post(INFER, json=GOOD).get_json()
    telling = client.post(INFER, json={**GOOD, "parameters": {"evidence": True}}).get_json()

    assert "parameters" not in silent
    evidence = telling["parameters"]
    assert evidence["bundle"] == "0" * 64
    assert (evidence["bucket"], evidence["padded_rows"]) == (4, 2)
    assert evidence["queue_us"] >= 0
    assert evidence["compute_us"] >= 0


def test_a_timeout_of_the_scheduling_extension_is_kept(client):
    """A timeout in microseconds that no batch can meet is exceeded at once; 0 means no timeout."""
    over = client.post(INFER, json={**GOOD, "parameters": {"timeout": 1}})
    none = client.post(INFER, json={**GOOD, "parameters": {"timeout": 0, "priority": 1}})

    assert "is less than a batch takes here" in refused(over, 504, "deadline")
    assert none.status_code == 200


@mark.parametrize(
    ("policy", "expected"), [("null", [None, 1.5, None]), ("string", ["NaN", 1.5, "-Infinity"])]
)
def test_json_has_no_nan(policy, expected):
    """NaN and infinity are written in JSON as configured; in binary unchanged."""
    values = np.float32([np.nan, 1.5, -np.inf])
    model = FakeModel(function=lambda x: (values[: len(x)],), buckets=(3,))
    body = {"inputs": [X | {"shape": [3, 2], "data": [0] * 6}]}
    binary = {**body, "parameters": {"binary_data_output": True}}

    with contextlib.closing(Running(nonfinite=policy)) as running:
        client = client_for(running, model)
        as_json = client.post(INFER, json=body)
        _, found = unpacked(client.post(INFER, json=binary))

    assert as_json.get_json()["outputs"][0]["data"] == expected
    assert found["y"] == values.tobytes()
    assert running.service.metrics.nonfinite == 2


def test_metadata_describes_the_signature(running):
    """Names, datatypes and shapes are reported, with -1 for sizes that vary."""
    client = client_for(running, FakeModel(signature=ECHO))

    assert client.get("/v2/models/fake").get_json() == {
        "name": "fake",
        "versions": ["1"],
        "platform": "jax_stablehlo",
        "inputs": [
            {"name": "ids", "datatype": "INT32", "shape": [-1, -1]},
            {"name": "mask", "datatype": "INT32", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "echo", "datatype": "INT32", "shape": [-1, -1]},
            {"name": "total", "datatype": "INT32", "shape": [-1]},
        ],
    }
