"""Rows a second of a bundle in Beam's RunInference, and of the plain way there: a DoFn that calls jit.

    python -m bench.batch.over_beam BUNDLE ROWS WAY [MODE WORKERS]

WAY is `handler`; `plain`, a DoFn that batches, and calls what jit compiled; or `nothing`, the pipeline without a
model. Rows are made on the workers, or Create would be what is measured.
"""

import argparse
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from bench.batch.workload import SEED, behind_start, few_rows
from hloserve.beam import HloserveModelHandler
from runtime import load
from runtime.storage.bundle_manifest import manifest_at

_CHUNK = 1000


class Rows(beam.DoFn):
    """Makes rows of the number of a chunk."""

    def __init__(self, specs):
        self._specs = specs

    def process(self, chunk):
        """Yield the rows of a chunk."""
        number, rows = chunk
        chance = np.random.default_rng(SEED + number)
        columns = {
            name: chance.integers(1, high, (rows, *shape)).astype(dtype)
            for name, (dtype, shape, high) in self._specs.items()
        }
        for i in range(rows):
            yield {name: column[i] for name, column in columns.items()}


class Plain(beam.DoFn):
    """What one writes without this project: batches to arrays, through a function that jit compiled."""

    def __init__(self, bundle):
        self._bundle = bundle

    def setup(self):
        """Make a function of the bundle's own program of the largest bucket, so that both compute the same."""
        model = load(self._bundle, "cpu")
        group = min(model.groups.items())[1]
        self._batch = max(group.programs)
        program = group.programs[self._batch]
        self._specs = model.signature.inputs
        sizes = dict(zip((a.name for a in model.signature.axes), group.sizes, strict=True))
        self._shapes = [spec.concrete(self._batch, sizes) for spec in self._specs]
        self._call = lambda inputs: program.call(model.params, inputs)

    def process(self, batch):
        """Yield the answers of a batch."""
        inputs = []
        for spec, shape in zip(self._specs, self._shapes, strict=True):
            array = np.ones(shape, spec.dtype) if spec.mask else np.zeros(shape, spec.dtype)
            if not spec.mask:
                array[: len(batch)] = np.stack([row[spec.name] for row in batch])
            inputs.append(array)
        yield from zip(
            *[np.asarray(o)[: len(batch)] for o in self._call(tuple(inputs))], strict=True
        )


def seconds(bundle, rows, way, mode, workers):
    """Return how long a pipeline of so many rows takes."""
    manifest, _ = manifest_at(bundle)
    largest = max(program.batch for program in manifest.programs)
    flags = [f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"]
    pipeline = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(flags))
    chunks = [(i, min(_CHUNK, rows - i * _CHUNK)) for i in range(-(-rows // _CHUNK))]
    made = (
        pipeline
        | beam.Create(chunks)
        | beam.Reshuffle()
        | "Rows" >> beam.ParDo(Rows(few_rows(manifest.signature)))
    )
    if way == "handler":
        found = made | RunInference(HloserveModelHandler(bundle, device="cpu", raw=True))
    elif way == "plain":
        found = (
            made
            | beam.BatchElements(min_batch_size=largest, max_batch_size=largest)
            | "Plain" >> beam.ParDo(Plain(bundle))
        )
    else:
        found = made
    counted = found | beam.combiners.Count.Globally()
    _ = counted | "Expect" >> beam.Map(expect, rows)
    begin = time.perf_counter()
    pipeline.run().wait_until_finish()
    return time.perf_counter() - begin


def expect(count, rows):
    """Fail where rows were lost."""
    if count != rows:
        raise AssertionError(f"expected {rows} answers, got {count}")


def main():
    """Print as JSON the rows and seconds behind the start, and the seconds of the start."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch.over_beam")
    parser.add_argument("bundle")
    parser.add_argument("rows", type=int)
    parser.add_argument("way", choices=("handler", "plain", "nothing"))
    parser.add_argument("mode", nargs="?", default="in_memory")
    parser.add_argument("workers", nargs="?", type=int, default=1)
    arguments = parser.parse_args()
    behind_start(
        lambda rows: seconds(
            arguments.bundle, rows, arguments.way, arguments.mode, arguments.workers
        ),
        arguments.rows,
    )


if __name__ == "__main__":
    main()
