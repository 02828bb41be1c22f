"""Bundles, and models of them."""

import os

# Before jax: only processors are looked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools

from pytest import fixture

from hloserve.ray import HloservePredictor
from runtime import load
from tests.engines.exported import export_bundles


@fixture(scope="session")
def bundles(tmp_path_factory):
    """The folder of all bundles."""
    out = tmp_path_factory.mktemp("bundles")
    export_bundles(out)
    return out


@fixture(scope="session")
def model(bundles):
    """Loads a bundle by its name, once."""
    return functools.cache(lambda name: load(bundles / name, "cpu"))


@fixture(scope="session")
def predictor(bundles):
    """Makes a predictor of a bundle by its name and options, each once."""
    return functools.cache(lambda name, **options: HloservePredictor(bundles / name, **options))
