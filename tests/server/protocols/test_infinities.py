"""Infinities that a bundle declares, in every protocol: words in JSON, bits in bytes."""

import contextlib
import dataclasses
import json

import numpy as np
from pytest import fixture, mark, raises

from runtime.entries import OutputFormat
from runtime.errors import NonFiniteOutput
from runtime.records.predictions import limit_softmax, writable
from runtime.signature import TensorSpec
from runtime.tensors import numpy_dtype
from tests.server.fakes import SUM, FakeModel, Running, signature
from tests.server.flask_client import client_for, refused
from tests.server.grpc_harness import GrpcHarness, array_of
from tests.server.grpc_harness import rows as grpc_rows
from tests.server.oip_client import INFER, unpacked

VALUES = np.float32([-np.inf, 0.1, np.inf])
WORDS = ["-Infinity", 0.1, "Infinity"]
POLICIES = ("null", "string", "error")
BODY = {"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "data": [0] * 6}]}
# The same three rows, as each dialect of JSON has them.
ASKED = {
    "/predict": {"instances": [[0, 0]] * 3},
    "/v1/models/fake:predict": {"inputs": [[0, 0]] * 3},
    INFER: BODY,
}
LABELS = ("a", "b", "c")


def declared(given, *names):
    """Declare that outputs of a signature may be infinite: those named, or all."""
    return dataclasses.replace(
        given,
        outputs=tuple(
            dataclasses.replace(spec, nonfinite="infinities")
            if not names or spec.name in names
            else spec
            for spec in given.outputs
        ),
    )


def answering(*values, names=()):
    """Make a model that answers each output with these values, whatever it is asked."""
    outputs = [f"y{i or ''}:float32[_]" for i in range(len(values))]
    given = declared(signature(["x:float32[_, 2]"], outputs), *names)
    return FakeModel(
        (3,), signature=given, function=lambda x: tuple(v[: len(x)].copy() for v in values)
    )


@contextlib.contextmanager
def asked(model, policy="null"):
    """Return a client of the model, and the service behind it."""
    with contextlib.closing(Running(nonfinite=policy)) as running:
        yield client_for(running, model), running.service


def found(answer):
    """Return the values of the only output, whatever the protocol."""
    value = json.loads(answer.get_data())
    if "predictions" in value:
        return value["predictions"]
    outputs = value["outputs"]
    return outputs[0]["data"] if isinstance(outputs[0], dict) else outputs


@mark.parametrize("path", ASKED)
@mark.parametrize("policy", POLICIES)
def test_declared_infinities_are_words_in_json(policy, path):
    """Declared infinities are written in each protocol, whatever the policy for others; none counts as a failure."""
    with asked(answering(VALUES), policy) as (client, service):
        answer = client.post(path, json=ASKED[path])

        assert (answer.status_code, found(answer)) == (200, WORDS)
        assert service.metrics.nonfinite == 0


@mark.parametrize("path", ASKED)
@mark.parametrize(("policy", "written"), [("null", None), ("string", "NaN"), ("error", None)])
def test_nan_beside_declared_infinities_follows_the_policy(policy, written, path):
    """NaN is not covered by the declaration: it is written by the policy, and counted."""
    values = np.float32([-np.inf, np.nan, 2])
    with asked(answering(values), policy) as (client, service):
        answer = client.post(path, json=ASKED[path])

        assert service.metrics.nonfinite == 1
        if policy == "error":
            assert refused(answer, 500, "non_finite_output").startswith("the answer holds NaN")
        else:
            assert found(answer) == ["-Infinity", written, 2.0]


def test_another_output_is_not_declared():
    """Infinities of the undeclared output follow the policy, and are counted."""
    with asked(answering(VALUES, VALUES, names=("y",))) as (client, service):
        rows = client.post("/predict", json=ASKED["/predict"]).get_json()["predictions"]

        assert [row["y"] for row in rows] == WORDS
        assert [row["y1"] for row in rows] == [None, 0.1, None]
        assert service.metrics.nonfinite == 1


def test_bytes_are_bit_exact():
    """Binary tensors have the infinities as they are."""
    with asked(answering(VALUES)) as (client, service):
        body = BODY | {"parameters": {"binary_data_output": True}}
        _, arrays = unpacked(client.post(INFER, json=body))

        assert arrays["y"] == VALUES.tobytes()
        assert service.metrics.nonfinite == 0


@fixture
def grpc_server():
    """A gRPC server before a model that answers with declared infinities."""
    grpc_server = GrpcHarness(
        FakeModel((3,), signature=declared(SUM), function=lambda x: (VALUES[: len(x)].copy(),))
    )
    yield grpc_server
    grpc_server.close()


def test_grpc_is_bit_exact(grpc_server):
    """Raw contents have the infinities as they are, and none is counted."""
    answer = grpc_server.infer(grpc_rows(1, 2, 3), timeout=30)

    assert array_of(answer, "y", np.float32).tobytes() == VALUES.tobytes()
    assert grpc_server.service.metrics.nonfinite == 0


SCORES = np.float32(
    [[0, -np.inf, 0], [-np.inf] * 3, [np.inf, 1, -np.inf], [np.inf, 0, np.inf], [-1e30, 1e30, 0]]
)
PROBABILITIES = [[0.5, 0, 0.5], [0, 0, 0], [1, 0, 0], [0.5, 0, 0.5], [0, 1, 0]]


def scoring(kind, scores):
    """Make a model that answers these declared logits, written in a kind."""
    given = declared(signature(["x:float32[_, 2]"], [f"y:{scores.dtype}[_, {scores.shape[1]}]"]))
    form = OutputFormat(kind=kind, output="y", scores="logits", labels=LABELS)
    return FakeModel(
        (len(scores),), signature=given, function=lambda _: (scores,), output_format=form
    )


@mark.parametrize("policy", POLICIES)
@mark.parametrize("dtype", ["float32", "float64"])
def test_impossible_classes_have_the_probability_0(policy, dtype):
    """-inf is 0, inf takes all, and a row of which nothing is possible has no label."""
    instances = {"instances": [[0, 0]] * len(SCORES)}
    with asked(scoring("classification", SCORES.astype(dtype)), policy) as (client, service):
        rows = client.post("/predict", json=instances).get_json()["predictions"]

        assert [list(row["probabilities"].values()) for row in rows] == PROBABILITIES
        assert [row["label"] for row in rows] == ["a", None, "a", "a", "b"]
        assert [row["confidence"] for row in rows] == [0.5, 0, 1, 0.5, 1]
        assert service.metrics.nonfinite == 0
    with asked(scoring("softmax", SCORES.astype(dtype)), policy) as (client, service):
        rows = client.post("/predict", json=instances).get_json()["predictions"]

        assert rows == PROBABILITIES


def test_nan_among_logits_is_nan_in_its_row_alone():
    """Probabilities of a row with NaN are unknown, those of its neighbours are not."""
    scores = np.float32([[np.nan, -np.inf, 0], [0, -np.inf, 0]])
    with asked(scoring("classification", scores)) as (client, service):
        bad, good = client.post("/predict", json={"instances": [[0, 0]] * 2}).get_json()[
            "predictions"
        ]

        assert list(bad["probabilities"].values()) == [None] * 3
        assert (good["label"], list(good["probabilities"].values())) == ("a", [0.5, 0, 0.5])
        assert service.metrics.nonfinite == 1


def test_wide_logits_do_not_overflow():
    """Doubles beyond float32 are no infinities, and rank as they are."""
    assert limit_softmax(np.array([[-1e300, -2e300], [1e300, 1e200]])).tolist() == [[1, 0], [1, 0]]


def test_no_classes_and_no_rows_have_no_probabilities():
    """Nothing is divided by where there is nothing."""
    assert limit_softmax(np.empty((0, 3), np.float32)).shape == (0, 3)
    assert limit_softmax(np.empty((2, 0), np.float32)).shape == (2, 0)


@mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e5m2"])
def test_every_floating_dtype_is_spelt_out(dtype):
    """Words take the place of infinities, and numbers keep their shortest digits."""
    spec = TensorSpec(name="y", dtype=dtype, shape=("_",), nonfinite="infinities")
    array = np.array([-np.inf, 0.25, np.inf], numpy_dtype(dtype))

    assert writable(array, spec, None).tolist() == ["-Infinity", 0.25, "Infinity"]
    assert writable(array[1:2], spec, "error").tolist() == [0.25]
    with raises(NonFiniteOutput):
        writable(array, dataclasses.replace(spec, nonfinite=None), "error")


def test_requests_of_one_batch_are_written_once_and_rightly():
    """Declared infinities do not prevent a batch's predictions from being formatted together."""
    instances = {"instances": [[0, 0]]}
    with asked(answering(VALUES)) as (client, service):
        first = client.post("/predict", json=instances).get_json()
        again = client.post("/predict", json=instances).get_json()

        assert first == again == {"predictions": ["-Infinity"]}
        assert service.metrics.nonfinite == 0
