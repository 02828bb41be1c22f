"""Tiny bundles, each exported once for the whole run and never written to by a test."""

import jax
import numpy as np
from flax import linen as nn
from hypothesis import HealthCheck, settings
from pytest import fixture

import export
from export import TensorSpec

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


@fixture(scope="session")
def classifier_bundle(tmp_path_factory):
    """x float32[_, 4] to logits of three labels; buckets 1, 2, 4."""
    out = tmp_path_factory.mktemp("bundles") / "classifier"
    model = Classifier()
    export.export_model(
        model,
        model.init(jax.random.key(0), np.zeros((1, 4), np.float32)),
        inputs=["x:float32[_,4]"],
        buckets=(1, 2, 4),
        output="classification:logits",
        labels=("red", "green", "blue"),
        name="classifier",
        out=out,
    )
    return out


@fixture(scope="session")
def tagger_bundle(tmp_path_factory):
    """ids int32[_, seq] in 0..9 and a mask, to scores and a mean; buckets 1, 4; seq 4, 8."""
    out = tmp_path_factory.mktemp("bundles") / "tagger"
    model = Tagger()
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=9)
    mask = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True)
    zeros = np.zeros((1, 4), np.int32)
    export.export_model(
        model,
        model.init(jax.random.key(1), zeros, zeros + 1),
        inputs=[ids, mask],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
        name="tagger",
        out=out,
    )
    return out


@fixture(scope="session")
def wide_bundle(tmp_path_factory):
    """x int64[_, 2] plus an int64 param of 7; needs 64-bit types; buckets 1, 2."""
    out = tmp_path_factory.mktemp("bundles") / "wide"

    def add(params, x):
        return x + params["seven"]

    export.export_model(
        add,
        {"seven": np.array([7], np.int64)},
        inputs=["x:int64[_,2]"],
        buckets=(1, 2),
        name="wide",
        out=out,
    )
    return out


@fixture(scope="session")
def mixing_bundle(tmp_path_factory):
    """x float32[_, 2] less its mean over the batch, exported all the same; buckets 1, 4."""
    out = tmp_path_factory.mktemp("bundles") / "mixing"

    def center(params, x):
        return x - x.mean(axis=0) + params["bias"]

    export.export_model(
        center,
        {"bias": np.zeros(2, np.float32)},
        inputs=["x:float32[_,2]"],
        buckets=(1, 4),
        name="mixing",
        allow_row_mixing=True,
        out=out,
    )
    return out


@fixture(scope="session")
def cuda_bundle(tmp_path_factory):
    """x float32[_, 2] doubled, for CUDA only and never verified; bucket 1."""
    out = tmp_path_factory.mktemp("bundles") / "cuda"

    def scale(params, x):
        return x * params["factor"]

    export.export_model(
        scale,
        {"factor": np.full(2, 2.0, np.float32)},
        inputs=["x:float32[_,2]"],
        buckets=(1,),
        platforms=("cuda",),
        name="cuda",
        unverified=True,
        out=out,
    )
    return out
