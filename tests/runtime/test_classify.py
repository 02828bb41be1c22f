"""`Model.classify`: what a server would answer, without one."""

import json

import numpy as np
from pytest import fixture, raises

from runtime import InvalidInput, load
from server.protocols.response import to_json
from tests.serving import serving

ROWS = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)


@fixture(scope="module")
def classifier(classifier_bundle):
    """The classifier's model."""
    return load(classifier_bundle, "cpu")


def test_labels_are_those_of_the_bundle(classifier, wide_bundle):
    """A model has the names of its classes in order; one without has none."""
    assert classifier.labels == ("red", "green", "blue")
    assert load(wide_bundle, "cpu").labels == ()


def test_a_row_has_its_label_with_confidence_and_probabilities(classifier):
    """Each row is answered by the label of the highest probability, and all of these."""
    answers = classifier.classify({"x": ROWS.tolist()})

    for answer in answers:
        assert list(answer) == ["label", "confidence", "probabilities"]
        assert answer["confidence"] == max(answer["probabilities"].values())
        assert answer["probabilities"][answer["label"]] == answer["confidence"]
        assert {type(value) for value in answer["probabilities"].values()} == {float}
    assert len(answers) == len(ROWS)
    assert json.loads(to_json(answers)) == answers


def test_nan_is_null_as_a_server_writes_it(classifier):
    """What JSON has no number for is None."""
    (answer,) = classifier.classify({"x": np.full((1, 4), np.nan, np.float32)})

    assert set(answer["probabilities"].values()) == {None}
    assert answer["confidence"] is None


def test_other_outputs_are_refused(wide_bundle):
    """A bundle that is of no classification says how it would be one."""
    with raises(InvalidInput) as caught:
        load(wide_bundle, "cpu").classify({"x": [[1, 2]]})

    assert str(caught.value) == (
        "classify: expected a bundle with the output format classification, got raw; export it with "
        "--output classification:logits"
    )


def test_answers_are_the_servers_to_the_digit(classifier, classifier_bundle):
    """A server of the same bundle answers the same values."""
    with serving("--bundle", str(classifier_bundle)) as served:
        for row in ROWS.tolist():
            _, answer = served.post({"instances": [row]})

            assert classifier.classify({"x": [row]}) == answer["predictions"]
