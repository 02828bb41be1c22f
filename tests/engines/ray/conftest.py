"""Bundles, and models of them."""

import functools

from pytest import fixture

from hloserve.ray import HloservePredictor


@fixture(scope="session")
def predictor(bundles):
    """Makes a predictor of a bundle by its name and options, each once."""
    return functools.cache(lambda name, **options: HloservePredictor(bundles / name, **options))
