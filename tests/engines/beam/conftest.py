"""Bundles, models of them, and pipelines whose results are read back."""

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from pytest import fixture

from tests.engines.beam.pipelines import Collected, pipeline


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
