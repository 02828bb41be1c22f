"""TensorFlow Serving's REST dialect, and KServe's v1 with it."""

import base64
import contextlib
import json

import numpy as np
from pytest import fixture, mark, param

from runtime.signature import DTYPE_BYTES
from tests.server.fakes import ECHO, EVERY, FakeModel, Running, signature
from tests.server.flask_client import client_for, client_of, refused

PREDICT = "/v1/models/fake:predict"
TWO = signature(["a:float32[_, 2]", "k:int8[_]"], ["y:float32[_]", "z:float32[_, 2]"])


@fixture
def client(running):
    """Flask's test client, in front of a model that sums rows."""
    return client_for(running, FakeModel())


def two():
    """Make a model of two inputs and two outputs."""
    return FakeModel(signature=TWO, function=lambda a, k: (a.sum(axis=1) * k, a))


def still_good(client):
    """Check that a good request gets its response."""
    answer = client.post(PREDICT, json={"instances": [[1, 2]]})
    assert answer.get_json() == {"predictions": [3.0]}


@mark.parametrize("path", [PREDICT, "/v1/models/fake/versions/1:predict"])
@mark.parametrize("signature_name", [{}, {"signature_name": ""}, {"signature_name": "serving_default"}])  # fmt: skip
def test_rows_and_columns_are_answered_in_kind(client, path, signature_name):
    """`instances` get `predictions`, and `inputs` get `outputs`."""
    rows = client.post(path, json={**signature_name, "instances": [[1, 2], [3, 4]]})
    columns = client.post(path, json={**signature_name, "inputs": [[1, 2], [3, 4]]})

    assert rows.get_json() == {"predictions": [3.0, 7.0]}
    assert columns.get_json() == {"outputs": [3.0, 7.0]}


def test_several_tensors_have_names(running):
    """With several inputs and outputs both forms name them."""
    client = client_for(running, two())
    rows = {"instances": [{"a": [1, 2], "k": 1}, {"a": [3, 4], "k": 2.0}]}
    columns = {"inputs": {"k": [1, 2.0], "a": [[1, 2], [3, 4]]}}

    assert client.post(PREDICT, json=rows).get_json() == {
        "predictions": [{"y": 3.0, "z": [1.0, 2.0]}, {"y": 14.0, "z": [3.0, 4.0]}]
    }
    assert client.post(PREDICT, json=columns).get_json() == {
        "outputs": {"y": [3.0, 14.0], "z": [[1.0, 2.0], [3.0, 4.0]]}
    }


def test_the_only_input_may_be_named_in_columns(client):
    """The only input's tensor stands alone or by its name."""
    assert client.post(PREDICT, json={"inputs": {"x": [[1, 2]]}}).get_json() == {"outputs": [3.0]}


def test_bytes_are_written_in_base64(client):
    """TensorFlow Serving's `b64` values are a tensor's bytes."""
    data = {"b64": base64.b64encode(np.float32([1, 2]).tobytes()).decode()}

    assert client.post(PREDICT, json={"instances": [data]}).get_json() == {"predictions": [3.0]}


def test_every_dtype_goes_through_columns(running):
    """What every dtype of the format has as JSON goes in and comes out."""
    client = client_for(running, FakeModel(signature=EVERY, function=lambda *arrays: arrays))
    columns = {dtype: [[1, 0], [0, 1.0]] for dtype in DTYPE_BYTES}
    columns["bool"] = [[True, False], [False, True]]

    answer = client.post(PREDICT, json={"inputs": columns})

    assert answer.get_json() == {"outputs": {f"{d}_out": rows for d, rows in columns.items()}}


@mark.parametrize("signature", [None, ECHO])
@mark.parametrize(("form", "answer"), [("instances", "predictions"), ("inputs", "outputs")])
def test_no_rows_are_answered_by_no_rows(running, signature, form, answer):
    """An empty list has no shape, and is no rows all the same."""
    model = FakeModel() if signature is None else FakeModel(signature=signature)
    client = client_for(running, model)

    found = client.post(PREDICT, json={form: []}).get_json()[answer]

    assert found in ([], {"echo": [], "total": []})


def test_a_mask_may_be_left_out_of_columns(running):
    """A tensor with a bucketed axis needs no mask, and one with a mask is masked."""
    client = client_for(running, FakeModel(signature=ECHO))

    whole = client.post(PREDICT, json={"inputs": [[1, 2, 3]]})
    masked = client.post(PREDICT, json={"inputs": {"ids": [[1, 2, 3]], "mask": [[1, 1, 0]]}})

    assert whole.get_json()["outputs"]["total"] == [6]
    assert masked.get_json()["outputs"]["total"] == [3]


@mark.parametrize(
    ("body", "text"),
    [
        param({}, "body: expected instances or inputs, got neither", id="neither"),
        param({"instances": [], "inputs": []}, "body: expected instances or inputs, got both", id="both"),
        param({"instances": [[1, 2]], "parameters": {}}, "body: expected signature_name, instances, inputs, got 'parameters'", id="unknown"),
        param({"instances": [[1, 2]], "signature_name": "train"}, "signature_name: expected 'serving_default', got 'train'", id="signature"),
        param({"instances": [[1, 2]], "signature_name": []}, "signature_name: expected 'serving_default', got an array", id="signature-list"),
        param({"instances": {}}, "instances: expected an array, got an object", id="rows"),
        param({"instances": [[1]]}, "instances[0]: input 'x': expected float32[2], got [1]", id="row"),
        param({"inputs": {"z": [[1, 2]]}}, "inputs: expected 'x', got 'z'", id="unknown-input"),
        param({"inputs": {"z" * 500: [[1, 2]]}}, f"inputs: expected 'x', got '{'z' * 100}'", id="long-name"),
        param({"inputs": {}}, "input 'x': expected float32[_, 2], got nothing", id="missing"),
        param({"inputs": None}, "input 'x': expected float32, got null", id="null"),
        param({"inputs": 5}, "input 'x': expected float32[_, 2], got float32[]", id="number"),
        param({"inputs": "text"}, "input 'x': expected float32, got a string", id="text"),
        param({"inputs": [1, 2]}, "input 'x': expected float32[_, 2], got float32[2]", id="rank"),
        param({"inputs": [[1, 2, 3]]}, "input 'x': expected float32[_, 2], got float32[1, 3]", id="size"),
        param({"inputs": [[1, 2], [3]]}, "input 'x': expected float32, got lists of different lengths", id="ragged"),
        param({"inputs": [[]]}, "input 'x': expected float32[_, 2], got float32[1, 0]", id="empty-row"),
        param({"inputs": {"b64": "AAAA"}}, "inputs: expected 'x', got 'b64'", id="base64-columns"),
    ],
)  # fmt: skip
def test_a_bad_body_is_a_400_that_says_why(client, body, text):
    """An invalid request is refused with a reason, and a good request is still answered."""
    assert refused(client.post(PREDICT, json=body), 400, "invalid_argument") == text
    still_good(client)


def test_columns_of_different_length_are_refused(running):
    """All inputs have as many rows."""
    client = client_for(running, two())

    answer = client.post(PREDICT, json={"inputs": {"a": [[1, 2]], "k": [1, 2]}})

    text = "input 'k': expected int8[_] with _=1 as in the inputs before it, got int8[2]"
    assert refused(answer, 400, "invalid_argument") == text


def test_several_inputs_cannot_be_bare(running):
    """With several inputs columns have to be named."""
    answer = client_for(running, two()).post(PREDICT, json={"inputs": [[1, 2]]})

    text = "inputs: expected an object, got an array"
    assert refused(answer, 400, "invalid_argument") == text


def test_binary_tensors_are_another_protocols(client):
    """The binary form of the Open Inference Protocol is not read here."""
    headers = {"Inference-Header-Content-Length": "0"}
    answer = client.post(PREDICT, data=bytes(8), headers=headers)

    text = "content-type: expected application/json, got binary tensors"
    assert refused(answer, 415, "unsupported_media") == text
    still_good(client)


@mark.parametrize(
    "path",
    [
        "/v1/models/other:predict",
        "/v1/models/fake/versions/2:predict",
        "/v1/models/%2e%2e:predict",
        "/v1/models/fake%20:predict",
        "/v1/models/fake:classify",
        "/v1/models/fake:regress",
    ],
)
def test_another_model_version_or_verb_is_not_found(client, path):
    """Only the model's own name and version predict, and predicting is all there is."""
    answer = client.post(path, json={"instances": [[1, 2]]})

    assert answer.status_code in (404, 405, 501)
    assert answer.mimetype == "application/json"
    still_good(client)


@mark.parametrize("policy", ["null", "string", "error"])
def test_columns_follow_the_policy_for_nan(policy):
    """NaN is written as the server was configured."""
    model = FakeModel(function=lambda x: (np.full(len(x), np.nan, np.float32),))
    with contextlib.closing(Running(nonfinite=policy)) as running:
        answer = client_for(running, model).post(PREDICT, json={"inputs": [[1, 2]]})

    expected = {"null": b'{"outputs":[null]}', "string": b'{"outputs":["NaN"]}'}
    if policy == "error":
        assert refused(answer, 500, "non_finite_output")
    else:
        assert answer.get_data() == expected[policy]


def test_the_state_is_given_in_both_protocols_terms(client, running):
    """TensorFlow Serving's clients read the version's state, KServe's read `ready`."""

    def status_of(path="/v1/models/fake"):
        answer = client.get(path).get_json()
        (version,) = answer["model_version_status"]
        return answer["name"], answer["ready"], version["version"], version["state"]

    assert (
        status_of() == status_of("/v1/models/fake/versions/1") == ("fake", True, "1", "AVAILABLE")
    )
    running.service.drain()
    assert status_of() == ("fake", False, "1", "UNLOADING")


def test_a_model_that_is_still_loading_is_not_ready(running, config):
    """While the model is loading every request for it is 503."""
    client = client_of(running, config)

    for path in ("/v1/models", "/v1/models/fake", "/v1/models/fake/metadata"):
        assert refused(client.get(path), 503, "not_ready")
    assert refused(client.post(PREDICT, json={"instances": []}), 503, "not_ready")


def test_models_are_listed(client):
    """KServe's clients list the models."""
    assert client.get("/v1/models").get_json() == {"models": ["fake"]}


def test_metadata_has_the_signature(running):
    """The signature is written in TensorFlow's dtypes, with -1 for sizes that vary."""
    client = client_for(running, FakeModel(signature=ECHO))

    answer = client.get("/v1/models/fake/metadata").get_json()

    definition = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert answer["model_spec"] == {"name": "fake", "signature_name": "", "version": "1"}
    assert definition["inputs"]["ids"] == {
        "dtype": "DT_INT32",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "-1", "name": ""}],
            "unknown_rank": False,
        },
        "name": "ids",
    }
    assert json.dumps(definition["outputs"]).count('"-1"') == 3
