"""The text classifier: saved in two ways, exported from each, equal to its plain server."""

import hashlib
import json
import re

import jax
import numpy as np
from flax.training import checkpoints
from pytest import approx, fixture, mark, raises
from tokenizers import Tokenizer

import export
from examples.text_classifier.model import TextClassifier
from examples.text_classifier.reference import pad, predict
from examples.text_classifier.save import CONFIG, initial_params
from examples.text_classifier.train import REQUESTED, encode, predicted, reviews
from export import VerificationError
from export.__main__ import main
from runtime import load, open_bundle
from runtime.preprocessing.raw_goldens import read_raw
from runtime.records.predictions import formatted
from tests import in_tensorflow
from tests.server.http_harness import HttpHarness

MODEL = "examples.text_classifier.model:TextClassifier"
LABELS = ("very_negative", "negative", "neutral", "positive", "very_positive")
TENSORS = (
    *("--input", "x:int32[_,128]", "--range", "x=0:49999", "--buckets", "1,32"),
    *("--output", "classification:probabilities", "--labels", ",".join(LABELS)),
)


@fixture(scope="module")
def saved(run, tmp_path_factory):
    """Save the model in both ways."""
    out = tmp_path_factory.mktemp("text_classifier")
    run("examples.text_classifier.save", "--out", out)
    return out


@fixture(scope="module")
def from_checkpoint(run, saved):
    """Export the Flax checkpoint, for TensorFlow too; the bundle's directory."""
    run(
        *("export", MODEL, "--params", saved / "checkpoint", *TENSORS),
        *("--out", saved / "one", "--savedmodel", saved / "tf"),
    )
    return saved / "one"


@fixture(scope="module")
def from_pickle(run, saved):
    """Export the pickle and its configuration; the bundle's directory and what was said."""
    done = run(
        *("export", MODEL, "--params", saved / "model.pkl", "--allow-pickle"),
        *("--config", saved / "config.json", *TENSORS, "--out", saved / "two"),
    )
    return saved / "two", done.stderr


@fixture(scope="module")
def params():
    """The weights, made again from the seed."""
    return initial_params()


def texts(count):
    """Draw texts of 1 to 200 token ids; some are longer than the model takes."""
    rng = np.random.default_rng(count)
    return [rng.integers(0, 50000, rng.integers(1, 200)).tolist() for _ in range(count)]


def expect_the_plain_answers(bundle, params):
    """Assert that a bundle answers as the plain server does, at, between and beyond its buckets."""
    model = load(bundle, "cpu")
    for count in (1, 3, 32, 40):
        expected = predict(params, texts(count))
        scores = model.predict({"x": pad(texts(count))})["output"]
        answers = formatted(scores, model.signature.outputs[0], model.manifest.output_format)
        assert [a["label"] for a in answers] == [e["label"] for e in expected]
        for answer, wanted in zip(answers, expected, strict=True):
            assert answer["confidence"] == approx(wanted["confidence"], abs=1e-6)
            assert answer["probabilities"] == approx(wanted["probabilities"], abs=1e-6)


@mark.e2e
def test_a_flax_checkpoint_becomes_a_bundle_with_the_plain_answers(from_checkpoint, params):
    """Exported from a Flax checkpoint, it returns the plain server's labels and probabilities."""
    expect_the_plain_answers(from_checkpoint, params)


@mark.e2e
def test_a_pickle_becomes_a_bundle_with_the_plain_answers(from_pickle, params):
    """Exported from a pickle and its configuration, it returns the plain server's answers."""
    expect_the_plain_answers(from_pickle[0], params)


@mark.e2e
@mark.usefixtures("from_checkpoint")
def test_a_savedmodel_gives_the_plain_answers(saved, params, tensorflow):
    """In TensorFlow three texts, which no bucket holds, get the plain server's probabilities."""
    expected = predict(params, texts(3))
    inputs = {"x": pad(texts(3))}

    scores = tensorflow(in_tensorflow.run, saved / "tf", "serving_default", inputs)["output"]

    wanted = [[e["probabilities"][label] for label in LABELS] for e in expected]
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-6)
    assert (saved / "tf" / "saved_model.pb").stat().st_size < 100_000


@mark.e2e
def test_a_key_of_the_configuration_that_the_model_lacks_is_named(from_pickle):
    """The exporter reports that it ignored max_seq_length, and nothing else."""
    notes = [line for line in from_pickle[1].splitlines() if line.startswith("note:")]
    assert notes == ["note: --config: ignored max_seq_length, which the model does not take"]


@mark.e2e
def test_both_ways_of_saving_give_the_same_programs_and_params(from_checkpoint, from_pickle):
    """How the params were saved leaves no trace in the bundle but its time of making."""

    def digests(bundle):
        return {
            str(p.relative_to(bundle)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in bundle.rglob("*")
            if p.is_file() and p.name != "manifest.json"
        }

    assert digests(from_checkpoint) == digests(from_pickle[0])


@mark.e2e
def test_a_pickle_is_refused_unless_it_is_trusted(saved, tmp_path, capsys):
    """Without --allow-pickle the export ends with a reason, and leaves nothing on disk."""
    status = main(
        [MODEL, "--params", f"{saved}/model.pkl", *TENSORS, "--out", f"{tmp_path}/bundle"]
    )

    assert status == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: params {saved}/model.pkl: a pickle can run any code when it is read; pass "
        "--allow-pickle if you trust where it comes from"
    )
    assert not list(tmp_path.iterdir())


def test_the_model_is_the_published_one(params):
    """It has 50,000 embeddings of 256, a hidden layer of 512 and five classes."""
    assert jax.tree.map(np.shape, params) == {
        "Embed_0": {"embedding": (50000, 256)},
        "Dense_0": {"kernel": (256, 512), "bias": (512,)},
        "Dense_1": {"kernel": (512, 5), "bias": (5,)},
    }
    assert CONFIG["max_seq_length"] == 128


def test_the_weights_are_those_of_the_published_seed(params):
    """They are drawn with PRNGKey(42)."""
    expected = TextClassifier().init(jax.random.PRNGKey(42), np.ones((1, 128), np.int32))

    jax.tree.map(np.testing.assert_array_equal, params, expected["params"])


def test_the_plain_server_cuts_and_fills_to_one_length():
    """A text is cut after 128 tokens or filled with token 0 up to there."""
    rows = pad([[7] * 200, [5]])

    assert rows.tolist() == [[7] * 128, [5, *[0] * 127]]


def test_an_unmasked_mean_gets_no_bucketed_axis(tmp_path):
    """A mean that counts padding answers differently in a longer bucket, and is refused."""
    small = TextClassifier(vocab_size=50, embed_dim=8, hidden_dim=8)
    params = small.init(jax.random.key(0), np.ones((1, 4), np.int32))

    with raises(VerificationError, match=r"b1-seq8, output 'output'.*max \|Δ\| 0\.\d+, accepted"):
        export.export_model(
            small,
            params,
            inputs=["x:int32[_,seq]"],
            axes={"seq": (4, 8)},
            buckets=(1,),
            platforms=("cpu",),
            out=tmp_path / "bundle",
        )
    assert not list(tmp_path.iterdir())


@fixture(scope="module")
def trained(run, tmp_path_factory):
    """Train the model and its tokenizer on sentences; the directory, and what was said."""
    out = tmp_path_factory.mktemp("reviews")
    done = run("examples.text_classifier.train", "--out", out)
    return out, done.stdout


@fixture(scope="module")
def sentences(run, trained):
    """Export it, to be asked with sentences."""
    out, _ = trained
    run(
        *("export", MODEL, "--params", out / "checkpoint", "--config", out / "config.json"),
        *("--input", "x:int32[_,128]", "--text", f"text={out / 'tokenizer.json'}"),
        *("--golden", out / "golden.jsonl", "--output", "classification:probabilities"),
        *("--labels", ",".join(LABELS), "--buckets", "1,8", "--out", out / "bundle"),
    )
    return out / "bundle"


@mark.e2e
def test_training_on_sentences_is_better_than_the_commonest_label(trained):
    """It finds the label of more held-out sentences than have the commonest, and is near to it for most."""
    found = re.search(
        r"sentences: (.*) have the label of 5, (.*) that .* has (.*)$", trained[1], re.MULTILINE
    )
    exact, near, commonest = map(float, found.groups())

    assert exact > commonest + 0.1
    assert near > 0.65


@mark.e2e
def test_sentences_are_asked_of_a_server(trained, sentences):
    """Real sentences over HTTP get the labels that the training code finds by its own tokenizer."""
    params = checkpoints.restore_checkpoint(trained[0] / "checkpoint", target=None)
    own = Tokenizer.from_file(str(trained[0] / "tokenizer.json"))
    _, held_out = reviews()
    texts = [*REQUESTED, *held_out.texts[40:60]]
    expected = predicted(params, encode(own, texts))
    harness = HttpHarness(load(sentences, "cpu"))
    try:
        answer = harness.app.test_client().post("/predict", json={"instances": texts})
    finally:
        harness.close()
    predictions = answer.get_json()["predictions"]

    assert [p["label"] for p in predictions] == [LABELS[i] for i in expected]
    assert [p["label"] for p in predictions[:2]] == ["very_positive", "very_negative"]
    assert json.loads((trained[0] / "request.json").read_text())["instances"] == list(REQUESTED)


@mark.e2e
def test_what_is_proven_begins_at_sentences(sentences):
    """The bundle has golden sentences, and one tokenizer that was trained on others."""
    manifest = open_bundle(sentences).manifest
    _, held_out = reviews()
    kept = [
        row["text"]
        for golden in manifest.goldens
        for row in read_raw(open_bundle(sentences), golden)
    ]

    assert kept
    assert set(kept) <= set(held_out.texts)
    assert manifest.preprocess[0].input_ids == "x"
