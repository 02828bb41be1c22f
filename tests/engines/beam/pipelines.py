"""Pipelines of Beam's own runner, what their workers do, and PCollections that are read back."""

import base64
import itertools
import pickle

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from hloserve.beam import RefusedRow


def pipeline(mode="in_memory", workers=1):
    """Return a pipeline of Beam's own runner, which downloads nothing."""
    flags = [f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]
    return beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(flags))


def _text(value):
    return base64.b64encode(pickle.dumps(value)).decode()


class Collected:
    """Values of PCollections, by way of files, since workers may be other processes."""

    def __init__(self, folder):
        self._folder = folder
        self._names = itertools.count()

    def add(self, collection):
        """Write a PCollection; return what reads it back after the pipeline has run."""
        name = f"c{next(self._names)}"
        _ = (
            collection
            | f"Pickle{name}" >> beam.Map(_text)
            | f"Write{name}" >> beam.io.WriteToText(str(self._folder / name))
        )
        return lambda: [
            pickle.loads(base64.b64decode(line))  # noqa: S301 (written above)
            for path in sorted(self._folder.glob(f"{name}-*"))
            for line in path.read_text().splitlines()
        ]


def row(i):
    """Return the i-th row: left of the middle for even numbers."""
    return {"x": np.array([1, -1] if i % 2 == 0 else [-1, 1], np.float32) * (1 + i)}


def side(i):
    """Return the label of the i-th row."""
    return "left" if i % 2 == 0 else "right"


def made(numbers):
    """Make rows on workers, each with its number as its key."""
    return numbers | "Row" >> beam.Map(lambda i: (i, row(i)))


def labels(keyed):
    """Return the key of a row, its label or its error, and its bundle."""
    key, result = keyed
    found = result.inference
    return key, found.error if isinstance(found, RefusedRow) else found["label"], result.model_id
