"""The Open Inference Protocol over HTTP: what is refused, and how."""

import difflib

import numpy as np
from pytest import fixture, mark, param

from runtime.signature import Signature, TensorSpec
from tests.server.fakes import EVERY, FakeModel, signature
from tests.server.flask_client import client_for, refused
from tests.server.oip_client import GOOD, INFER, LENGTH, X, packed, still_good, tensor


@fixture
def client(running):
    """Flask's test client, in front of a model that sums rows."""
    return client_for(running, FakeModel())


def inputs(**changes):
    """Make a request with one input, changed; None leaves a key out."""
    changed = {key: value for key, value in (X | changes).items() if value is not None}
    return {"inputs": [changed]}


@mark.parametrize(
    ("body", "text"),
    [
        param({}, "inputs: expected an array, got none", id="nothing"),
        param({"inputs": {}}, "inputs: expected an array, got an object", id="object"),
        param({"inputs": []}, "input 'x': expected float32[_, 2], got nothing", id="missing"),
        param({"inputs": [1]}, "inputs[0]: expected an object, got a number", id="number"),
        param({**GOOD, "more": 1}, "body: expected id, parameters, inputs, outputs, got 'more'", id="unknown-key"),
        param({**GOOD, "id": 7}, "id: expected a string, got a number", id="id"),
        param({**GOOD, "parameters": []}, "parameters: expected an object, got an array", id="parameters"),
        param({**GOOD, "parameters": {"binary_data_output": 1}}, "parameters: expected true or false for binary_data_output", id="flag"),
        param({**GOOD, "parameters": {"timeout": "1"}}, "parameters: expected timeout in microseconds, got something else", id="timeout"),
        param({**GOOD, "parameters": {"timeout": -1}}, "parameters: expected timeout in microseconds, got something else", id="timeout-negative"),
        param({"inputs": [X, X]}, "input 'x': expected once, got it twice", id="twice"),
        param(inputs(name="z"), "input: expected 'x', got 'z'", id="unknown"),
        param(inputs(name="z" * 5000), f"input: expected 'x', got '{'z' * 100}'", id="long-name"),
        param(inputs(name=["x"]), "input: expected 'x', got an array", id="name-is-a-list"),
        param(inputs(name={}), "input: expected 'x', got an object", id="name-is-an-object"),
        param(inputs(name=False), "input: expected 'x', got False", id="name-is-a-boolean"),
        param(inputs(datatype="FP64"), "input 'x': expected datatype FP32, got 'FP64'", id="datatype"),
        param(inputs(datatype="BYTES"), "input 'x': expected datatype FP32, got 'BYTES'", id="bytes"),
        param(inputs(datatype=[]), "input 'x': expected datatype FP32, got an array", id="datatype-list"),
        param({"inputs": [{"name": "x", "shape": [1, 2], "data": [1, 2]}]}, "input 'x': expected datatype FP32, got null", id="no-datatype"),
        param({"inputs": [{"name": "x", "datatype": "FP32", "data": [1, 2]}]}, "input 'x': expected a shape, got null", id="no-shape"),
        param(inputs(shape="22"), "input 'x': expected a shape, got a string", id="shape-string"),
        param(inputs(shape=[2]), "input 'x': expected float32[_, 2], got 1 dimensions", id="rank"),
        param(inputs(shape=[1] * 100_000), "input 'x': expected float32[_, 2], got 100000 dimensions", id="100000-dims"),
        param(inputs(shape=[-2, -2]), "input 'x': expected sizes of 0 or more in its shape, got -2", id="negative-dim"),
        param(inputs(shape=[2.0, 2]), "input 'x': expected sizes of 0 or more in its shape, got 2.0", id="float-dim"),
        param(inputs(shape=["2", 2]), "input 'x': expected sizes of 0 or more in its shape, got '2'", id="string-dim"),
        param(inputs(shape=[True, 2]), "input 'x': expected sizes of 0 or more in its shape, got True", id="bool-dim"),
        param(inputs(shape=[None, 2]), "input 'x': expected sizes of 0 or more in its shape, got null", id="null-dim"),
        param(inputs(shape=[2, 3]), "input 'x': expected float32[_, 2], got 3 in its shape", id="fixed-dim"),
        param(inputs(shape=[2**63, 2]), f"input 'x': expected float32[_, 2], got {2**63} in its shape", id="huge-dim"),
        param(inputs(shape=[3, 2]), "input 'x': expected 6 values for shape [3, 2], got shape [2, 2]", id="too-few"),
        param(inputs(data=[1, 2, 3]), "input 'x': expected 4 values for shape [2, 2], got 3 values", id="count"),
        param(inputs(data=[[1, 2, 3, 4]]), "input 'x': expected 4 values for shape [2, 2], got shape [1, 4]", id="other-shape"),
        param(inputs(data=[1, 2, 3, None]), "input 'x': expected float32, got null", id="null"),
        param(inputs(data=[[1, 2], [3]]), "input 'x': expected float32, got lists of different lengths", id="ragged"),
        param(inputs(data={}), "input 'x': expected float32, got an object", id="data-object"),
        param(inputs(data=None), "input 'x': expected data or binary_data_size, got neither", id="neither"),
        param(inputs(parameters={"binary_data_size": 16}), "input 'x': expected data or binary_data_size, got both", id="both"),
        param(inputs(data=None, parameters={"binary_data_size": 16}), "input 'x': expected 16 bytes for shape [2, 2], got 0", id="no-bytes"),
        param(inputs(data=None, parameters={"binary_data_size": -1}), "input 'x': expected binary_data_size of 0 or more, got -1", id="negative-size"),
        param(inputs(data=None, parameters={"binary_data_size": True}), "input 'x': expected binary_data_size of 0 or more, got True", id="bool-size"),
        param(inputs(more=1), "inputs[0]: expected name, shape, datatype, parameters, data, got 'more'", id="unknown-tensor-key"),
        param({**GOOD, "outputs": {}}, "outputs: expected an array, got an object", id="outputs"),
        param({**GOOD, "outputs": ["y"]}, "outputs[0]: expected an object, got a string", id="output-name-bare"),
        param({**GOOD, "outputs": [{"name": "z"}]}, "output: expected 'y', got 'z'", id="output"),
        param({**GOOD, "outputs": [{}]}, "output: expected 'y', got null", id="output-unnamed"),
        param({**GOOD, "outputs": [{"name": "y"}] * 2}, "output 'y': expected once, got it twice", id="output-twice"),
        param({**GOOD, "outputs": [{"name": "y"}] * 100_000}, "output 'y': expected once, got it twice", id="output-100000-times"),
        param({**GOOD, "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "parameters: expected true or false for binary_data", id="output-flag"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_is_a_400_that_says_why(client, body, text):
    """A bad request gets 400 and a readable reason, and a good one after it is answered."""
    assert refused(client.post(INFER, json=body), 400, "invalid_argument") == text
    still_good(client)


@mark.parametrize("shape", [[0, 2**62], [0, 2**70], [2**31 - 1, 0], [2**70, 0]])
def test_impossible_shapes_without_elements_are_refused(running, shape):
    """A size of 0 makes any product right; the other sizes are compared with bounds all the same."""
    model = FakeModel(signature=signature(["x:float32[_, seq]"], ["y:float32[_]"], seq=(4,)))
    client = client_for(running, model)
    json_body = {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": []}]}
    binary = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 0}}  # fmt: skip

    assert refused(client.post(INFER, json=json_body), 400, "invalid_argument")
    assert refused(client.post(INFER, **packed({"inputs": [binary]})), 400, "invalid_argument")


@mark.parametrize(
    ("where", "parameters"),
    [
        ("outputs", {"classification": 3}),
        ("outputs", {"shared_memory_region": "r", "shared_memory_byte_size": 8}),
        ("inputs", {"shared_memory_region": "r", "shared_memory_byte_size": 8}),
    ],
)
def test_extensions_that_are_not_served_are_501(client, where, parameters):
    """A request that relies on an unsupported extension is refused, rather than answered without it."""
    body = {**GOOD, "outputs": [{"name": "y"}]}
    body = {**body, where: [body[where][0] | {"parameters": parameters}]}

    assert "is not served" in refused(client.post(INFER, json=body), 501, "unsupported")
    still_good(client)


def test_a_name_that_is_none_is_not_compared_with_names(client, monkeypatch):
    """The search for a similar name takes long, so it is limited to strings that may be names."""
    compared = []

    def matches(word, *_, **__):
        compared.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", matches)
    for name in ([[1] * 1000], {"x": 1}, 7, None, "n" * 1000):
        body = {"inputs": [GOOD["inputs"][0] | {"name": name}]}
        assert refused(client.post(INFER, json=body), 400, "invalid_argument")

    assert compared == ["n" * 100]


FOUR = np.float32([[1, 2], [3, 4]])


@mark.parametrize(
    ("message", "data", "text"),
    [
        param({"inputs": [tensor(FOUR)]}, FOUR[:1], "input 'x': expected 16 bytes for shape [2, 2], got 8", id="too-few"),
        param({"inputs": [tensor(FOUR)]}, np.float32([[1, 2, 3, 4, 5]]), "body: expected 16 bytes of binary tensors behind the JSON, got 20", id="too-many"),
        param(GOOD, FOUR, "body: expected 0 bytes of binary tensors behind the JSON, got 16", id="unasked"),
        param({"inputs": [tensor(FOUR) | {"parameters": {"binary_data_size": 8}}]}, FOUR, "input 'x': expected 16 bytes for shape [2, 2], got 8", id="size-too-small"),
        param({"inputs": [tensor(FOUR) | {"parameters": {"binary_data_size": 10**30}}]}, FOUR, "input 'x': expected binary_data_size of 0 or more, got 1e+30", id="size-beyond-integers"),
        param({"inputs": [tensor(FOUR) | {"datatype": "INT32"}]}, FOUR, "input 'x': expected datatype FP32, got 'INT32'", id="datatype"),
        param({"inputs": [tensor(FOUR) | {"shape": [2**4, 2**60 + 2]}]}, FOUR, f"input 'x': expected float32[_, 2], got {2**60 + 2} in its shape", id="overflow"),
        param({"inputs": [tensor(FOUR) | {"shape": [2**31 - 1, 2]}]}, FOUR, "input 'x': expected 17179869176 bytes for shape [2147483647, 2], got 16", id="large"),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit_are_refused(client, message, data, text):
    """Every byte behind the JSON belongs to exactly one tensor, of exactly its size."""
    answer = client.post(INFER, **packed(message, data))

    assert refused(answer, 400, "invalid_argument") == text
    still_good(client)


@mark.parametrize(
    ("length", "text"),
    [
        ("99999999999", "inference-header-content-length: expected at most 5 as the body has, got 99999999999"),
        ("6", "inference-header-content-length: expected at most 5 as the body has, got 6"),
        ("4", "body: expected JSON, got "),
        ("0", "body: expected a multiple of 8 bytes, got 5"),
        ("-1", "inference-header-content-length: expected a number of bytes, got '-1'"),
    ],
)  # fmt: skip
def test_a_json_length_that_does_not_fit_is_refused(client, length, text):
    """The JSON in front of bytes is exactly as long as the header says."""
    answer = client.post(INFER, data=b'{"a"}', headers={LENGTH: length})

    assert refused(answer, 400, "invalid_argument").startswith(text)
    still_good(client)


def test_a_body_alone_needs_one_input(running):
    """Bytes alone cannot be distinguished where there are several inputs."""
    client = client_for(running, FakeModel(signature=EVERY))

    answer = client.post(INFER, data=b"1234", headers={LENGTH: "0"})

    text = "body: expected JSON that names the inputs, got bytes alone"
    assert refused(answer, 400, "invalid_argument") == text


@mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/other/infer", 404),
        ("/v2/models/fake/versions/2/infer", 404),
        ("/v2/models/fake/versions/01/infer", 404),
        ("/v2/models/FAKE/infer", 404),
        ("/v2/models/%2e%2e/infer", 404),
        ("/v2/models/..%2ffake/infer", 404),
        ("/v2/models/fake%00/infer", 404),
        ("/v2/models/%66ake/infer", 404),
        ("/v2/models/f%D0%B0ke/infer", 404),
        ("/v2/models/fake%20/infer", 404),
        ("/v2/models/%5cfake/infer", 404),
        (f"/v2/models/{'m' * 10_000}/infer", 404),
        ("/v2/models//infer", 404),
    ],
)
def test_only_the_models_own_name_reaches_it(client, path, status):
    """No other spelling of a name or version is served, nor repeated at length."""
    answer = client.post(path, json=GOOD)

    assert answer.status_code == status
    if status == 404:
        assert len(refused(answer, 404, "not_found")) < 200


def test_values_outside_the_declared_range_are_refused(running):
    """Indices that a program would clamp silently are refused."""
    ids = TensorSpec(name="ids", dtype="int32", shape=("_",), minimum=0, maximum=9)
    both = Signature(inputs=(ids,), outputs=(TensorSpec(name="y", dtype="int32", shape=("_",)),))
    client = client_for(running, FakeModel(signature=both, function=lambda i: (i,)))

    def ask(value):
        tensor = {"name": "ids", "shape": [2], "datatype": "INT32", "data": [1, value]}
        return client.post(INFER, json={"inputs": [tensor]})

    above, below = refused(ask(10), 400, "invalid_argument"), refused(ask(-1), 400, "invalid_argument")  # fmt: skip
    assert above == "input 'ids': expected values <= 9, got 10"
    assert below == "input 'ids': expected values >= 0, got -1"
    assert ask(9).get_json()["outputs"][0]["data"] == [1, 9]
