"""A client of TensorFlow Serving against the server: rows, columns, status and metadata."""

import json
import urllib.request

import numpy as np
from pytest import fixture, mark

from runtime import load
from tests.serving import TIMEOUT_S, post, serving

pytestmark = mark.e2e

ROWS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


@fixture(scope="module")
def model_url(classifier_bundle):
    """The address of the model at a running server."""
    with serving("--bundle", str(classifier_bundle)) as served:
        yield f"{served.url}/v1/models/classifier"


def get(url):
    """Get JSON."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310
        return json.loads(answer.read())


@mark.parametrize("inputs", [ROWS.tolist(), {"x": ROWS.tolist()}])
def test_columns_are_what_the_model_gives(model_url, classifier_bundle, inputs):
    """The columnar form returns the outputs unchanged, however the input is named."""
    status, body = post(f"{model_url}:predict", json.dumps({"inputs": inputs}).encode())

    expected = load(classifier_bundle, "cpu").predict({"x": ROWS})["output"]
    assert status == 200
    np.testing.assert_allclose(np.float32(body["outputs"]), expected, rtol=1e-5, atol=1e-6)


@mark.parametrize("version", ["", "/versions/1"])
@mark.parametrize("instances", [ROWS.tolist(), [{"x": row} for row in ROWS.tolist()]])
def test_rows_are_predicted_as_the_bundle_formats_them(model_url, version, instances):
    """The row form returns a prediction for each instance, with the bundle's labels."""
    request = {"signature_name": "serving_default", "instances": instances}
    status, body = post(f"{model_url}{version}:predict", json.dumps(request).encode())
    _, columns = post(f"{model_url}:predict", json.dumps({"inputs": ROWS.tolist()}).encode())

    best = np.argmax(columns["outputs"], axis=1)
    assert status == 200
    labels = [prediction["label"] for prediction in body["predictions"]]
    assert labels == [("red", "green", "blue")[i] for i in best]


def test_a_client_waits_until_the_model_is_available(model_url):
    """The state that clients poll says that the version is there."""
    (version,) = get(model_url)["model_version_status"]

    assert version["state"] == "AVAILABLE"
    assert version["status"] == {"error_code": "OK", "error_message": ""}
    assert get(f"{model_url}/versions/1") == get(model_url)


def test_a_client_finds_the_signature(model_url):
    """Names, dtypes and shapes are where clients look for them."""
    definition = get(f"{model_url}/metadata")["metadata"]["signature_def"]["signature_def"]
    (name, info), *_ = definition["serving_default"]["inputs"].items()

    assert (name, info["dtype"]) == ("x", "DT_FLOAT")
    assert [dim["size"] for dim in info["tensor_shape"]["dim"]] == ["-1", "4"]


@mark.parametrize(
    ("path", "body", "status"),
    [
        (":predict", {"instances": [[1]]}, 400),
        (":predict", {"instances": [[1, 2, 3, 4]], "signature_name": "train"}, 400),
        ("/versions/2:predict", {"instances": [[1, 2, 3, 4]]}, 404),
        ("2:predict", {"instances": [[1, 2, 3, 4]]}, 404),
    ],
)
def test_errors_have_the_form_that_clients_read(model_url, path, body, status):
    """An error is JSON with a text, and the next request is answered."""
    got, answer = post(f"{model_url}{path}", json.dumps(body).encode())
    good, _ = post(f"{model_url}:predict", b'{"instances": [[1, 2, 3, 4]]}')

    assert (got, good) == (status, 200)
    assert isinstance(answer["error"], str)
