"""Bundles, models of them, and pipelines whose results are read back."""

import os

# Before jax or Beam: only processors are looked for, and no network.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from pytest import fixture

from runtime import load
from tests.engines.beam.pipelines import Collected, pipeline
from tests.engines.exported import export_bundles


@fixture(scope="session")
def bundles(tmp_path_factory):
    """The folder of all bundles."""
    out = tmp_path_factory.mktemp("bundles")
    export_bundles(out)
    return out


@fixture(scope="session")
def model(bundles):
    """Load a bundle by its name, once."""
    return functools.cache(lambda name: load(bundles / name, "cpu"))


@fixture
def collected(tmp_path):
    """Collect PCollections."""
    return Collected(tmp_path)


@fixture
def run(collected):
    """Run rows through a handler; return the results and the finished pipeline's metrics."""

    def scored(handler, rows, *, keep=lambda result: result, **how):
        running = pipeline(**how)
        with running as p:
            found = p | beam.Create(rows, reshuffle=False) | RunInference(handler)
            read = collected.add(found | "Keep" >> beam.Map(keep))
        return read(), running.result.metrics()

    return scored
