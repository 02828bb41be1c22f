"""Tiny bundles, each exported once for the whole run and never written to by a test."""

import concurrent.futures
import multiprocessing
import signal
import sys

import jax
import numpy as np
from flax import linen as nn
from hypothesis import HealthCheck, settings
from pytest import MonkeyPatch, fixture

import export
from export import Image, TensorSpec, Text
from tests import in_tensorflow, tokenizer_files
from tests.minutes import pytest_terminal_summary  # noqa: F401 (pytest calls it)

# Flax imports TensorFlow for its file functions where it finds it, which takes seconds.
with MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "tensorflow", None)
    import flax.io  # noqa: F401

# With packages of their own: ./build.sh engines.
collect_ignore = ["engines"]

# When the tests are started in the background, or under nohup, these may be ignored, and servers
# would keep running when a terminal sends them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a busy machine.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


class Classifier(nn.Module):
    """Four numbers in, three logits out."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


class Tagger(nn.Module):
    """A score for each token, and the masked mean of the tokens."""

    @nn.compact
    def __call__(self, ids, mask):
        tokens = nn.Embed(10, 6)(ids)
        weights = mask[..., None].astype(tokens.dtype)
        mean = (tokens * weights).sum(axis=1) / weights.sum(axis=1)
        return {"scores": nn.Dense(2)(tokens), "mean": mean}


@fixture(autouse=True)
def signals():
    """Check that a test, and what it calls, leaves this process's signal handlers unchanged."""
    before = _handlers()
    yield
    assert _handlers() == before


def _handlers():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


@fixture(scope="session")
def exported(tmp_path_factory):
    """Export a model under a name; return the bundle."""

    def run(name, model, params, **options):
        out = tmp_path_factory.mktemp("bundles") / name
        export.export_model(model, params, name=name, out=out, **options)
        return out

    return run


@fixture(scope="session")
def tensorflow():
    """Run a function of tests.in_tensorflow in a process that has TensorFlow; return its result."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=spawn, initializer=in_tensorflow.start
    ) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@fixture(scope="session")
def classifier_bundle(exported):
    """x float32[_, 4] to logits of three labels; buckets 1, 2, 4."""
    model = Classifier()
    return exported(
        "classifier",
        model,
        model.init(jax.random.key(0), np.zeros((1, 4), np.float32)),
        inputs=["x:float32[_,4]"],
        buckets=(1, 2, 4),
        output="classification:logits",
        labels=("red", "green", "blue"),
    )


@fixture(scope="session")
def tagger_bundle(exported):
    """ids int32[_, seq] in 0..9 and a mask, to scores and a mean; buckets 1, 4; seq 4, 8."""
    model = Tagger()
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=9)
    mask = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True)
    zeros = np.zeros((1, 4), np.int32)
    return exported(
        "tagger",
        model,
        model.init(jax.random.key(1), zeros, zeros + 1),
        inputs=[ids, mask],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
    )


class Sentences(nn.Module):
    """The mean of the tokens that are no padding."""

    @nn.compact
    def __call__(self, input_ids, attention_mask):
        tokens = nn.Embed(16, 6)(input_ids)
        weights = attention_mask[..., None].astype(tokens.dtype)
        return {"mean": (tokens * weights).sum(axis=1) / weights.sum(axis=1)}


@fixture(scope="session")
def sentence_bundle(exported, tmp_path_factory):
    """Texts of up to 8 tokens to the mean of their tokens; buckets 1, 4; seq 4, 8."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(tokenizer_files.words())
    model = Sentences()
    zeros = np.zeros((1, 4), np.int32)
    return exported(
        "sentences",
        model,
        model.init(jax.random.key(2), zeros, zeros + 1),
        inputs=[
            "input_ids:int32[_,seq]",
            TensorSpec(name="attention_mask", dtype="int32", shape=("_", "seq"), mask=True),
        ],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
        platforms="cpu",
        preprocess=[Text("text", tokenizer=path)],
    )


@fixture(scope="session")
def picture_bundle(exported):
    """Images of 2 by 2 pixels to the mean of each channel; buckets 1, 4."""
    return exported(
        "pictures",
        lambda params, image: {"mean": image.mean(axis=(1, 2)) * params["one"]},
        {"one": np.ones((), np.float32)},
        inputs=["image:float32[_,2,2,3]"],
        buckets=(1, 4),
        platforms="cpu",
        preprocess=[Image("image", 2)],
    )


def add(params, x):
    """Add a param of 64 bits."""
    return x + params["seven"]


@fixture(scope="session")
def wide_bundle(exported):
    """x int64[_, 2] plus an int64 param of 7; needs 64-bit types; buckets 1, 2."""
    seven = {"seven": np.array([7], np.int64)}
    return exported("wide", add, seven, inputs=["x:int64[_,2]"], buckets=(1, 2))


def center(params, x):
    """Subtract the batch's mean."""
    return x - x.mean(axis=0) + params["bias"]


@fixture(scope="session")
def mixing_bundle(exported):
    """x float32[_, 2] less its mean over the batch, exported all the same; buckets 1, 4."""
    return exported(
        "mixing",
        center,
        {"bias": np.zeros(2, np.float32)},
        inputs=["x:float32[_,2]"],
        buckets=(1, 4),
        allow_row_mixing=True,
    )


def scale(params, x):
    """Multiply by a param."""
    return x * params["factor"]


@fixture(scope="session")
def cuda_bundle(exported):
    """x float32[_, 2] doubled, for CUDA only and never verified; bucket 1."""
    return exported(
        "cuda",
        scale,
        {"factor": np.full(2, 2.0, np.float32)},
        inputs=["x:float32[_,2]"],
        buckets=(1,),
        platforms=("cuda",),
        unverified=True,
    )
