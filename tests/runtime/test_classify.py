"""`Model.classify`: what a server would answer, without one."""

import json

import jax.numpy as jnp
import numpy as np
from pytest import approx, fixture, raises

from export import TensorSpec, Text
from runtime import InvalidInput, load
from server.protocols.response import to_json
from tests.serving import serving
from tests.tokenizer_files import words

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
    """A bundle without a classification is refused with how to export one."""
    with raises(InvalidInput) as caught:
        load(wide_bundle, "cpu").classify({"x": [[1, 2]]})

    assert str(caught.value) == (
        "classify: expected a bundle with the output format classification, got raw; export it with "
        "--output classification:logits"
    )


def test_answers_are_the_servers(classifier, classifier_bundle):
    """A server of the same bundle answers the same.

    It compiles with a number of threads of its own, so that sums may be rounded differently.
    """
    with serving("--bundle", str(classifier_bundle)) as served:
        for row in ROWS.tolist():
            _, answer = served.post({"instances": [row]})

            (own,), (theirs,) = classifier.classify({"x": [row]}), answer["predictions"]
            assert own["label"] == theirs["label"]
            assert own["confidence"] == approx(theirs["confidence"], rel=1e-6)
            assert own["probabilities"] == approx(theirs["probabilities"], rel=1e-6)


def count(params, ids, mask):
    """Score a text by the sum of its tokens, and name these."""
    totals = (params[ids] * mask[..., None]).sum(axis=1)
    return {"totals": totals, "tokens": jnp.where(mask == 1, ids, -1)}


@fixture(scope="module")
def text_classifier_bundle(exported, tmp_path_factory):
    """Texts of up to 8 tokens to one of three labels, and their tokens; buckets 1, 2; seq 4, 8."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(words())
    return exported(
        "topics",
        count,
        np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32),
        inputs=[
            "ids:int32[_,seq]",
            TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True),
        ],
        axes={"seq": (4, 8)},
        buckets=(1, 2),
        platforms="cpu",
        output="classification:logits:totals",
        labels=("animals", "weather", "money"),
        preprocess=Text("text", tokenizer=path),
    )


def test_texts_are_classified_as_by_the_server(text_classifier_bundle):
    """Texts of several lengths get the values of a server of the same bundle, in their order."""
    texts = ["the cat sat on a mat", "dog", "the dog ran away", "a", "cat , dog"]
    model = load(text_classifier_bundle, "cpu")

    found = model.classify({"text": texts})

    assert [len(answer["tokens"]) for answer in found] == [8, 3, 6, 3, 5]
    assert all(sum(a["totals"]["probabilities"].values()) == approx(1) for a in found)
    with serving("--bundle", str(text_classifier_bundle)) as served:
        _, answer = served.post({"instances": texts})
    assert found == answer["predictions"]


def test_no_texts_are_no_answers(text_classifier_bundle):
    """A list without a text is answered by one without a row."""
    assert load(text_classifier_bundle, "cpu").classify({"text": []}) == []
