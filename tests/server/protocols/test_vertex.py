"""Vertex AI's dialect: instances in, predictions out, and rawPredict on the same route."""

import base64
import contextlib
import json

import numpy as np
from pytest import fixture, mark, param, raises

from runtime.entries import OutputFormat
from server.errors import TooLarge
from server.protocols.vertex import parse_instances
from tests.server.fakes import ECHO, EVERY, FakeModel, Running, signature
from tests.server.flask_client import client_for, refused

GOOD = {"instances": [[1, 2]]}
TWO = signature(["a:float32[_, 2]", "k:int8[_]"], ["y:float32[_]", "z:float32[_, 2]"])


@fixture
def client(running):
    """Flask's test client, in front of a model that sums rows."""
    return client_for(running, FakeModel())


def two():
    """Make a model of two inputs and two outputs."""
    return FakeModel(signature=TWO, function=lambda a, k: (a.sum(axis=1) * k, a))


def ask(client, instances, **more):
    """Post instances."""
    return client.post("/predict", json={"instances": instances, **more})


def b64(array):
    """Write an array as Vertex AI has bytes."""
    return {"b64": base64.b64encode(array.tobytes()).decode()}


def still_good(client):
    """Check that a good request gets its response."""
    assert client.post("/predict", json=GOOD).get_json() == {"predictions": [3.0]}


@mark.parametrize(
    "instance",
    [
        param([1, 2], id="value"),
        param({"x": [1, 2]}, id="by-name"),
        param([1.0, 2.0], id="doubles"),
        param(b64(np.float32([1, 2])), id="b64"),
        param({"x": b64(np.float32([1, 2]))}, id="b64-by-name"),
    ],
)
def test_an_instance_has_several_forms(client, instance):
    """The only input's value stands alone or by its name, as lists or as bytes."""
    assert ask(client, [instance]).get_json() == {"predictions": [3.0]}


def test_forms_stand_side_by_side(client):
    """Lists and bytes can be in one request."""
    assert ask(client, [[1, 2], b64(np.float32([3, 4]))]).get_json() == {"predictions": [3.0, 7.0]}


def test_several_outputs_are_an_object_each(running):
    """With several outputs a prediction names them."""
    client = client_for(running, two())

    answer = ask(client, [{"a": [0.1, 0.2], "k": 2}, {"k": 1.0, "a": [1, 2]}])

    expected = b'{"predictions":[{"y":0.6,"z":[0.1,0.2]},{"y":3.0,"z":[1.0,2.0]}]}'
    assert answer.get_data() == expected


def test_numbers_of_every_dtype_arrive_as_doubles(running):
    """Integers that were made doubles on their way are integers again."""
    client = client_for(running, FakeModel(signature=EVERY, function=lambda *arrays: arrays))
    instance = {
        spec.name: [True, False] if spec.dtype == "bool" else [0.0, 1.0] for spec in EVERY.inputs
    }

    (prediction,) = ask(client, [instance]).get_json()["predictions"]

    assert prediction == {f"{name}_out": values for name, values in instance.items()}


def test_rows_of_different_lengths_are_answered_at_their_own(running):
    """Each instance of a bucketed axis gets its own length back, as lists and as bytes."""
    client = client_for(running, FakeModel(signature=ECHO))

    answer = ask(client, [[1, 2], b64(np.int32([3, 4, 5])), [6]])

    assert answer.get_json() == {
        "predictions": [
            {"echo": [1, 2], "total": 3},
            {"echo": [3, 4, 5], "total": 12},
            {"echo": [6], "total": 6},
        ]
    }


def test_a_cropped_output_keeps_the_shortest_digits(running):
    """Cutting padding away does not change how a float is written."""
    ragged = signature(["x:float32[_, 2, seq]"], ["y:float32[_, 2, seq]"], seq=(2, 4))
    client = client_for(running, FakeModel(signature=ragged, function=lambda x: (x,)))

    answer = ask(client, [[[0.1], [0.2]], [[0.3, 0.4], [0.5, 0.6]]])

    assert answer.get_data() == b'{"predictions":[[[0.1],[0.2]],[[0.3,0.4],[0.5,0.6]]]}'


@mark.parametrize("model", [FakeModel(), FakeModel(signature=ECHO), two()])
def test_no_instances_get_no_predictions(running, model):
    """An empty list is answered by an empty list, whatever the signature."""
    assert ask(client_for(running, model), []).get_json() == {"predictions": []}


@mark.parametrize("parameters", [None, {}, {"timeout_ms": None}, {"timeout_ms": 5000}])
def test_parameters_are_optional(client, parameters):
    """Without parameters, or with a time that is enough, the answer is the same."""
    assert ask(client, [[1, 2]], parameters=parameters).get_json() == {"predictions": [3.0]}


@mark.parametrize("timeout_ms", [0, 0.0, 1e-9])
def test_a_time_that_is_over_is_a_504(client, timeout_ms):
    """A timeout that no batch can meet is refused at once."""
    over = ask(client, [[1, 2]], parameters={"timeout_ms": timeout_ms})

    assert refused(over, 504, "deadline").startswith("the request's time")
    still_good(client)


@mark.parametrize(
    ("headers", "status", "text"),
    [
        ({"X-Request-Timeout": "5"}, 200, None),
        ({"X-Request-Timeout": "0"}, 504, "the request's time was over before it was queued"),
        ({"X-Request-Timeout": "-1"}, 400, "x-request-timeout: expected seconds, got '-1'"),
        ({"X-Request-Timeout": "nan"}, 400, "x-request-timeout: expected seconds, got 'nan'"),
        ({"X-Request-Timeout": "inf"}, 400, "x-request-timeout: expected seconds, got 'inf'"),
        ({"X-Request-Timeout": "1_0"}, 400, "x-request-timeout: expected seconds, got '1_0'"),
        ({"X-Request-Timeout": "soon"}, 400, "x-request-timeout: expected seconds, got 'soon'"),
    ],
)
def test_a_time_can_be_in_a_header(client, headers, status, text):
    """A header with seconds is heeded, and refused where it is none."""
    answer = client.post("/predict", json=GOOD, headers=headers)

    assert answer.status_code == status
    assert answer.get_json().get("error") == text


def test_evidence_is_in_headers_on_request(client):
    """A response has inference metadata where the request asks for it."""
    silent = client.post("/predict", json=GOOD)
    telling = client.post("/predict", json=GOOD, headers={"X-Hloserve-Evidence": "1"})

    assert not any(name.lower().startswith("x-hloserve-") for name in silent.headers.keys())  # noqa: SIM118 (of pairs)
    assert telling.get_data() == silent.get_data()
    assert telling.headers["X-Hloserve-Bundle"] == "0" * 64
    assert telling.headers["X-Hloserve-Bucket"] == "1"
    assert telling.headers["X-Hloserve-Padded-Rows"] == "0"
    assert int(telling.headers["X-Hloserve-Queue-Us"]) >= 0
    assert int(telling.headers["X-Hloserve-Compute-Us"]) >= 0


@mark.parametrize(
    ("sent", "kept"),
    [("abc-123", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("é", False)],
)
def test_a_request_id_is_given_back_if_it_is_harmless(client, sent, kept):
    """A caller's request id is returned with an error, unless it is not safe to repeat."""
    answer = client.post("/predict", data=b"{", headers={"X-Request-Id": sent})

    assert (answer.get_json()["request_id"] == sent) == kept


def test_a_request_larger_than_any_bucket_is_split():
    """Requests up to the configured rows are answered; beyond them they are too large."""
    with contextlib.closing(Running(request_rows=9)) as running:
        client = client_for(running, FakeModel())
        fits = ask(client, [[i, 0] for i in range(9)])
        too_many = ask(client, [[i, 0] for i in range(10)])
        still_good(client)

    assert fits.get_json() == {"predictions": [float(i) for i in range(9)]}
    assert refused(too_many, 413, "too_large") == "instances: expected at most 9, got 10"


def test_too_many_instances_are_refused_before_they_are_looked_at():
    """Rows beyond what a request may have cost nothing."""
    with raises(TooLarge) as caught:
        parse_instances(b"", ["not looked at"] * 1001, FakeModel(signature=ECHO), 1000)

    assert str(caught.value) == "instances: expected at most 1000, got 1001"


def test_a_row_too_long_is_named(running):
    """One row beyond the largest size is refused, and with it its request."""
    client = client_for(running, FakeModel(signature=ECHO))

    answer = ask(client, [[1]] * 1000 + [[1] * 100_000])

    text = "instances[1000]: axis 'seq': expected at most 8, got 100000"
    assert refused(answer, 400, "invalid_argument") == text
    assert ask(client, [[1]]).status_code == 200


@mark.parametrize(
    ("instances", "text"),
    [
        param([[1, 2], [1]], "instances[1]: input 'x': expected float32[2], got [1]", id="shape"),
        param([[1, 2], [1, 2, 3]], "instances[1]: input 'x': expected float32[2], got [3]", id="long"),
        param([[1, 2], 3], "instances[1]: input 'x': expected float32[2], got []", id="number"),
        param([[1, 2], None], "instances[1]: input 'x': expected float32, got null", id="null"),
        param([[1, 2], "3"], "instances[1]: input 'x': expected float32, got a string", id="string"),
        param([[1, 2], {"x": [1, 2]}], "instances[0]: expected an object like the others, got an array", id="forms"),
        param([{"x": [1, 2]}, {}], "instances[1]: expected 'x', got none", id="missing"),
        param([{"x": [1, 2]}, {"x": [1, 2], "q" * 500: 1}], f"instances[1]: expected 'x', got '{'q' * 100}'", id="unknown"),
        param([[1, 2], {"b64": "####"}], "instances[1]: input 'x': expected base64, got other characters", id="no-base64"),
        param([[1, 2], {"b64": "AACAPwAAAEA=="}], "instances[1]: input 'x': expected base64, got other characters", id="padded-twice"),
        param([[1, 2], {"b64": 7}], "instances[1]: input 'x': expected base64, got a number", id="base64-number"),
        param([[1, 2], {"b64": "AAAA"}], "instances[1]: input 'x': expected 8 bytes for shape [2], got 3", id="base64-length"),
        param([[1, 2], {"b64": "AAAAAAAAAAA=", "more": 1}], "instances[0]: expected an object like the others, got an array", id="base64-and-more"),
        param([[1, 1e39]], "instances[0]: input 'x': expected float32, got 1e+39", id="overflow"),
        param([[1, [2]]], "instances[0]: input 'x': expected float32, got lists of different lengths", id="ragged"),
    ],
)  # fmt: skip
def test_a_bad_instance_is_named(client, instances, text):
    """A 400 names the instance that does not fit, and why; a good request is still answered."""
    assert refused(ask(client, instances), 400, "invalid_argument") == text
    still_good(client)


@mark.parametrize(
    ("body", "text"),
    [
        param(b'{"instances": [[1, 2]], "instances": [[3, 4]]}', "body: expected each key once, got 'instances' twice", id="twice"),
        param(b'{"instances": [{"x": [1, 2], "x": [3, 4]}]}', "body: expected each key once, got 'x' twice", id="input-twice"),
        param(b'{"instances": [[1, 2]], "inputs": []}', "body: expected instances and parameters, got 'inputs'", id="both-dialects"),
        param(b'{"instances": {"x": [1, 2]}}', "instances: expected an array, got an object", id="object"),
        param(b'{"instances": null}', "instances: expected an array, got null", id="null"),
        param(b'{"instances": [[1, 2]], "parameters": []}', "parameters: expected an object, got an array", id="parameters"),
        *(param(b'{"instances": [[1, 2]], "parameters": {"timeout_ms": %b}}' % value, "parameters: expected timeout_ms in milliseconds, got something else", id=f"timeout-{value.decode()}")
          for value in (b"-1", b'"5"', b"true", b"[]")),
    ],
)  # fmt: skip
def test_a_bad_body_is_a_400_that_says_why(client, body, text):
    """A body that is not instances and parameters is refused, and a good request is still answered."""
    assert refused(client.post("/predict", data=body), 400, "invalid_argument") == text
    still_good(client)


def test_two_inputs_cannot_be_a_bare_value(running):
    """With several inputs an instance has to name them, or be an array of them."""
    client = client_for(running, two())

    text = "instances[0]: expected 'a', 'k', in an object or in an array of 2, got a number"
    assert refused(ask(client, [7]), 400, "invalid_argument") == text
    assert ask(client, [[[1, 2], 3]]).get_json()["predictions"] == [{"y": 9.0, "z": [1.0, 2.0]}]


POISON = {
    "null": {"predictions": [None, 3.0]},
    "string": {"predictions": ["NaN", 3.0]},
}


@mark.parametrize("policy", ["null", "string", "error"])
def test_an_answer_that_json_cannot_hold_follows_the_policy(policy):
    """NaN is written as null or as a string, or fails the one request that has it."""

    def poisoned(x):
        with np.errstate(invalid="ignore"):
            return (np.where(x[:, 0] < 0, np.nan, x.sum(axis=1)).astype(np.float32),)

    with contextlib.closing(Running(nonfinite=policy)) as running:
        client = client_for(running, FakeModel(function=poisoned))
        answer = ask(client, [[-1, 0], [1, 2]])
        still_good(client)

        assert running.service.metrics.nonfinite == 1
    if policy == "error":
        assert refused(answer, 500, "non_finite_output").startswith("the answer holds NaN")
    else:
        assert json.loads(answer.get_data()) == POISON[policy]


@mark.parametrize("kind", ["softmax", "classification"])
@mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_have_probabilities_that_are_none(running, kind, poison):
    """A row of logits that holds NaN is answered with nulls; the row beside it is unaffected."""
    form = OutputFormat(kind=kind, output="y", scores="logits", labels=("a", "b"))
    both = signature(["x:float32[_, 2]"], ["y:float32[_, 2]"])
    rows = np.full((2, 2), poison, np.float32)
    rows[1] = [0, 0]
    model = FakeModel((2,), signature=both, function=lambda _: (rows,), output_format=form)
    client = client_for(running, model)

    bad, good = ask(client, [[0, 0], [0, 0]]).get_json()["predictions"]

    if kind == "classification":
        bad, good = (list(row["probabilities"].values()) for row in (bad, good))
    assert bad == [None, None]
    assert good == [0.5, 0.5]


@mark.parametrize(
    "parameters", [{"confidenceThreshold": 0.5}, {"top_k": [1], "timeout_ms": 30_000}, {"": {}}]
)
def test_parameters_that_mean_nothing_here_are_ignored(client, parameters):
    """Vertex AI passes on any parameters of a caller; unknown ones are ignored, as in the Open Inference Protocol."""
    answer = ask(client, [[1, 2]], parameters=parameters)

    assert (answer.status_code, answer.get_json()) == (200, {"predictions": [3.0]})


def test_the_likeliest_labels_alone(running):
    """With top_k a classification has the probabilities of so many labels, the likeliest first."""
    three = signature(["x:float32[_, 2]"], ["y:float32[_, 3]"])
    form = OutputFormat(kind="classification", output="y", labels=("a", "b", "c"))
    rows = np.float32([[0, 2, 1], [3, 0, 0]])
    model = FakeModel((2,), signature=three, function=lambda _: (rows,), output_format=form)
    client = client_for(running, model)

    first, second = ask(client, [[0, 0], [0, 0]], parameters={"top_k": 2}).get_json()["predictions"]
    every = ask(client, [[0, 0]], parameters={"top_k": 9}).get_json()["predictions"][0]

    assert (first["label"], list(first["probabilities"])) == ("b", ["b", "c"])
    assert (second["label"], list(second["probabilities"])) == ("a", ["a", "b"])
    assert first["confidence"] == first["probabilities"]["b"]
    assert list(every["probabilities"]) == ["b", "c", "a"]
    for wrong in (0, -1, 1.5, True, "2"):
        refused = ask(client, [[0, 0]], parameters={"top_k": wrong})
        assert refused.status_code == 400
        assert refused.get_json()["error"] == (
            f"parameters: expected top_k of 1 or more, got {wrong!r}"
        )
