"""all-MiniLM-L6-v2: its real weights, exported, compared with a forward pass in NumPy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import openai
from pytest import fixture, mark, raises
from safetensors.numpy import load_file
from scipy.special import erf
from tokenizers import Tokenizer

from examples.minilm.model import pretrained
from examples.minilm.similarity import SENTENCES, embed
from runtime import SignatureMismatch, load
from tests import in_tensorflow
from tests.server.http_harness import HttpHarness

ROOT = Path(__file__).parents[2]

pytestmark = mark.e2e


@fixture(scope="module")
def bundle(run, tmp_path_factory):
    """Export with the public command line, with fewer and smaller buckets than usual."""
    out = tmp_path_factory.mktemp("minilm") / "bundle"
    run(
        *("export", "examples/minilm/model.py:spec", "--out", out),
        *("--savedmodel", out.parent / "tf"),
        *("--buckets", "4", "--axis", "seq=16,32"),
    )
    return out


@fixture(scope="module")
def model(bundle):
    """The bundle, loaded."""
    return load(bundle, "cpu")


@fixture(scope="module")
def weights():
    """The weights as they are published, by their published names."""
    return load_file(pretrained() / "model.safetensors")


def tokenizer(longest):
    """Return the tokenizer that lies beside the weights, which cuts at a length and pads to the longest."""
    found = Tokenizer.from_file(str(pretrained() / "tokenizer.json"))
    found.enable_truncation(longest)
    found.enable_padding()
    return found


def encode_in_numpy(weights, ids):
    """Encode one sentence: BERT's forward pass in float64, no mask since there is no padding."""
    w = {name: array.astype(np.float64) for name, array in weights.items() if array.ndim <= 2}

    def norm(x, name):
        centered = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-12)
        return centered / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def heads(x):
        return x.reshape(len(ids), 12, 32).transpose(1, 0, 2)

    x = (
        w["embeddings.word_embeddings.weight"][ids]
        + w["embeddings.token_type_embeddings.weight"][0]
        + w["embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = norm(x, "embeddings.LayerNorm")
    for i in range(6):
        name = f"encoder.layer.{i}"
        query, key, value = (
            heads(dense(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(32))
        seen = scores / scores.sum(axis=-1, keepdims=True) @ value
        seen = seen.transpose(1, 0, 2).reshape(len(ids), 384)
        attended = dense(seen, f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = dense(x, f"{name}.intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_embeddings_are_those_of_the_published_weights(model, weights):
    """Sentences of mixed length have the vectors that a plain forward pass computes for each alone."""
    sentences = [*SENTENCES, "Yes.", "one two three four five six seven eight nine ten eleven " * 2]
    tokens = [one.ids for one in tokenizer(32).encode_batch(sentences, add_special_tokens=True)]
    real = [[t for t in ids if t != 0] for ids in tokens]
    expected = np.array([encode_in_numpy(weights, ids) for ids in real])

    got = embed(model, sentences)

    assert {len(ids) for ids in real} >= {4, 24}
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_a_savedmodel_takes_any_length(bundle, model, tensorflow):
    """In TensorFlow two sentences get their vectors at their own length, with no padding to a bucket."""
    encoded = tokenizer(32).encode_batch(list(SENTENCES[:2]))
    inputs = {
        "input_ids": np.array([one.ids for one in encoded], np.int32),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int32),
    }

    savedmodel = bundle.parent / "tf"
    got = tensorflow(in_tensorflow.run, savedmodel, "serving_default", inputs)["embedding"]

    assert inputs["input_ids"].shape[1] not in {16, 32}
    np.testing.assert_allclose(got, embed(model, SENTENCES[:2]), rtol=0, atol=2e-6)
    assert len(tensorflow(in_tensorflow.variables, savedmodel)) > 90
    assert (savedmodel / "saved_model.pb").stat().st_size < 500_000


def test_padding_means_nothing(model):
    """A sentence gets the same vector in a longer bucket, whatever stands behind its end."""
    (sentence,) = tokenizer(32).encode_batch([SENTENCES[0]])
    ids = np.int32([sentence.ids])
    short = model.predict({"input_ids": ids})["embedding"]
    longer = np.full((1, 32), 2000, np.int32)
    longer[:, : ids.shape[1]] = ids
    mask = (np.arange(32) < ids.shape[1]).astype(np.int32)[None]

    long = model.predict({"input_ids": longer, "attention_mask": mask})["embedding"]

    assert ids.shape[1] <= 16
    np.testing.assert_allclose(long, short, rtol=0, atol=1e-6)


def test_without_a_mask_all_tokens_are_real(model):
    """Leaving the mask out is the same as sending ones."""
    ids = np.int32([[101, 7592, 2088, 102]])

    got = model.predict({"input_ids": ids})["embedding"]
    expected = model.predict({"input_ids": ids, "attention_mask": np.ones_like(ids)})["embedding"]

    np.testing.assert_array_equal(got, expected)


def test_a_row_without_tokens_is_zeros(model):
    """A mask of zeros returns zeros, not NaN."""
    ids = np.zeros((1, 4), np.int32)

    got = model.predict({"input_ids": ids, "attention_mask": ids})["embedding"]

    np.testing.assert_array_equal(got, np.zeros((1, 384), np.float32))


def test_a_token_beyond_the_vocabulary_is_refused(model):
    """XLA would read another token's row; the signature knows the vocabulary."""
    with raises(SignatureMismatch) as error:
        model.predict({"input_ids": np.int32([[30522]])})

    assert str(error.value) == "input 'input_ids': expected values <= 30521, got 30522"


def test_related_sentences_are_near_and_others_far(model):
    """Cosines of sentences of one meaning are above 0.6, those of different ones below 0.2."""
    vectors = embed(model, SENTENCES)
    cosines = vectors @ vectors.T
    topic = np.arange(len(SENTENCES)) // 2
    related = topic[:, None] == topic[None, :]

    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    assert cosines[related].min() > 0.6
    assert cosines[~related].max() < 0.2


def test_a_sentence_beyond_the_longest_bucket_is_cut(model):
    """The tokenizer cuts at the longest bucket, so that what follows is not read."""
    start = "word " * 40

    vectors = embed(model, [start, start + "and something else"])

    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_programs_hold_no_weights(bundle):
    """Programs are small; the weights lie beside them once."""
    programs = [path.stat().st_size for path in bundle.glob("programs/*.exported")]

    assert len(programs) == 2
    assert max(programs) < 100_000
    assert (bundle / "params.safetensors").stat().st_size < 91_000_000


def test_the_openai_client_is_answered(model):
    """OpenAI's client gets the vectors that `predict` returns, by a change of the URL."""
    http_server = HttpHarness(model)
    url = f"http://127.0.0.1:{http_server.port}/v1"

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        found = client.embeddings.create(model="all-MiniLM-L6-v2", input=list(SENTENCES))
    http_server.close()

    got = [one.embedding for one in found.data]
    np.testing.assert_allclose(got, embed(model, SENTENCES), rtol=0, atol=1e-6)
    masks = [one.attention_mask for one in tokenizer(32).encode_batch(list(SENTENCES))]
    assert found.usage.total_tokens == sum(map(sum, masks))


def test_similarity_runs_without_flax(bundle):
    """The script prints a row for each sentence in a process that cannot import Flax."""
    code = (
        "import runpy, sys; "
        "sys.modules.update(dict.fromkeys(('flax', 'orbax', 'optax', 'export', 'torch'))); "
        "runpy.run_module('examples.minilm.similarity', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, str(bundle), "Hello there!", "Good morning."]

    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)

    lines = done.stdout.splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == ["Hello there!", "Good morning."]
    assert lines[0].startswith(" 1.00   0.")
