"""Answers as predictions."""

import ml_dtypes
import numpy as np
import orjson
from pytest import approx

from runtime.entries import OutputFormat
from runtime.records.predictions import predictions_from, softmax
from runtime.signature import Signature, TensorSpec

RAW = OutputFormat()
INPUTS = (TensorSpec(name="x", dtype="float32", shape=("_", 2)),)


def signature(*outputs, axes=()):
    """Make a signature with these outputs."""
    return Signature(inputs=INPUTS, outputs=outputs, axes=axes)


def tensor(name, shape, dtype="float32"):
    """Make an output."""
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def written(value):
    """Write as the server does, and read back."""
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def test_one_output_is_the_prediction():
    """With one output each prediction is its row, with float32's shortest digits."""
    outputs = {"y": np.float32([[0.1, 2], [3, 4]])}

    predictions = predictions_from(outputs, signature(tensor("y", ("_", 2))), RAW)

    assert written(predictions) == [[0.1, 2.0], [3.0, 4.0]]


def test_several_outputs_are_named():
    """With several outputs each prediction is an object."""
    both = signature(tensor("y", ("_",)), tensor("k", ("_",), "int32"))

    predictions = predictions_from({"y": np.float32([1, 2]), "k": np.int32([3, 4])}, both, RAW)

    assert written(predictions) == [{"y": 1.0, "k": 3}, {"y": 2.0, "k": 4}]


def test_bfloat16_is_written_as_numbers():
    """JSON has no bfloat16; it is written as the float32 of the same value."""
    outputs = {"y": np.array([[1.5, -2]], ml_dtypes.bfloat16)}

    predictions = predictions_from(outputs, signature(tensor("y", ("_", 2), "bfloat16")), RAW)

    assert written(predictions) == [[1.5, -2.0]]


def test_logits_are_classified():
    """A classification has the best label, its confidence, and all probabilities."""
    form = OutputFormat(kind="classification", output="y", scores="logits", labels=("no", "yes"))
    outputs = {"y": np.float32([[0, 0.5]])}

    (prediction,) = written(predictions_from(outputs, signature(tensor("y", ("_", 2))), form))

    assert prediction["label"] == "yes"
    assert prediction["confidence"] == approx(1 / (1 + np.exp(-0.5)), rel=1e-6)
    assert prediction["probabilities"]["no"] == approx(1 - prediction["confidence"], rel=1e-6)


def test_probabilities_are_classified_as_they_are():
    """Probabilities get no second softmax; without labels classes are numbered."""
    form = OutputFormat(kind="classification", output="y", scores="probabilities")
    outputs = {"y": np.float32([[0.25, 0.75]])}

    (prediction,) = written(predictions_from(outputs, signature(tensor("y", ("_", 2))), form))

    assert prediction == {"label": "1", "confidence": 0.75, "probabilities": [0.25, 0.75]}


def test_other_outputs_stay_beside_a_classification():
    """Only the formatted output changes its form."""
    form = OutputFormat(kind="softmax", output="y")
    both = signature(tensor("y", ("_", 2)), tensor("h", ("_",)))

    predictions = predictions_from({"y": np.float32([[1, 1]]), "h": np.float32([9])}, both, form)

    assert written(predictions) == [{"y": [0.5, 0.5], "h": 9.0}]


def test_softmax_of_large_logits_is_finite():
    """The largest logit is subtracted first."""
    assert softmax(np.float32([[1000, 1000, -1000]])).tolist() == [[0.5, 0.5, 0.0]]


def test_no_rows_are_no_predictions():
    """No instances get an empty list, whatever the format."""
    form = OutputFormat(kind="classification", output="y", scores="logits")

    predictions = predictions_from(
        {"y": np.empty((0, 2), np.float32)}, signature(tensor("y", ("_", 2))), form
    )

    assert written(predictions) == []


def test_embeddings_are_vectors():
    """An embedding is its row, of length one where that was chosen; a row of zeros stays."""
    outputs = {"y": np.float32([[3, 4], [0, 0]])}
    of = signature(tensor("y", ("_", 2)))

    plain, units = (
        written(
            predictions_from(
                outputs, of, OutputFormat(kind="embedding", output="y", normalized=chosen)
            )
        )
        for chosen in (False, True)
    )

    assert plain == [[3.0, 4.0], [0.0, 0.0]]
    assert units == [[approx(0.6), approx(0.8)], [0.0, 0.0]]
