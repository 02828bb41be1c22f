"""Rows a second of a bundle in Ray Data's map_batches, and of the plain way there: a class that calls jit.

    python -m bench.batch.over_ray BUNDLE ROWS WAY [ACTORS CPUS]

WAY is `handler`, `plain` or `nothing`, as of bench.batch.over_beam. Ray is started once, on the loopback.
"""

import argparse
import os
import sys
import tempfile
import time

import numpy as np
import ray

from bench.batch.workload import SEED, behind_start, few_rows
from hloserve.ray import HloservePredictor
from runtime import load
from runtime.storage.bundle_manifest import manifest_at

ENVIRON = {
    "JAX_PLATFORMS": "cpu",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_BATCH = 256
_BLOCK = 50_000


class Plain:
    """What one writes without this project: slices of a batch, through a function that jit compiled."""

    def __init__(self, bundle):
        model = load(bundle, "cpu")
        group = min(model.groups.items())[1]
        self._batch = max(group.programs)
        program = group.programs[self._batch]
        self._specs = model.signature.inputs
        sizes = dict(zip((a.name for a in model.signature.axes), group.sizes, strict=True))
        self._shapes = [spec.concrete(self._batch, sizes) for spec in self._specs]
        self._names = model.output_names
        self._call = lambda inputs: program.call(model.params, inputs)

    def __call__(self, batch):
        """Return the answers of a batch."""
        rows = len(next(iter(batch.values())))
        found = []
        for start in range(0, rows, self._batch):
            count = min(self._batch, rows - start)
            inputs = []
            for spec, shape in zip(self._specs, self._shapes, strict=True):
                array = np.ones(shape, spec.dtype) if spec.mask else np.zeros(shape, spec.dtype)
                if not spec.mask:
                    array[:count] = batch[spec.name][start : start + count]
                inputs.append(array)
            found.append([np.asarray(o)[:count] for o in self._call(tuple(inputs))])
        return dict(zip(self._names, map(np.concatenate, zip(*found, strict=True)), strict=True))


def rows_of(batch, specs):
    """Make rows of their numbers."""
    count = len(batch["id"])
    chance = np.random.default_rng(SEED + int(batch["id"][0]))
    return {
        name: chance.integers(1, high, (count, *shape)).astype(dtype)
        for name, (dtype, shape, high) in specs.items()
    }


def seconds(bundle, rows, way, actors, cpus):
    """Return how long a dataset of so many rows takes."""
    manifest, _ = manifest_at(bundle)
    begin = time.perf_counter()
    data = ray.data.range(rows, override_num_blocks=max(1, rows // _BLOCK)).map_batches(
        rows_of, fn_kwargs={"specs": few_rows(manifest.signature)}, num_cpus=0.25
    )
    how = {
        "batch_size": _BATCH,
        "compute": ray.data.ActorPoolStrategy(size=actors),
        "num_cpus": cpus,
    }
    if way == "handler":
        options = {"bundle": bundle, "device": "cpu", "raw": True}
        data = data.map_batches(HloservePredictor, fn_constructor_kwargs=options, **how)
    elif way == "plain":
        data = data.map_batches(Plain, fn_constructor_kwargs={"bundle": bundle}, **how)
    count = sum(len(block) for block in data.iter_batches(batch_size=None, batch_format="pandas"))
    if count != rows:
        sys.exit(f"expected {rows} answers, got {count}")
    return time.perf_counter() - begin


def main():
    """Print as JSON the rows and seconds behind the start, and the seconds of the start."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch.over_ray")
    parser.add_argument("bundle")
    parser.add_argument("rows", type=int)
    parser.add_argument("way", choices=("handler", "plain", "nothing"))
    parser.add_argument("actors", nargs="?", type=int, default=1)
    parser.add_argument("cpus", nargs="?", type=float, default=0.5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as temporary:
        ray.init(
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=1 << 30,
            log_to_driver=False,
            _temp_dir=temporary,
        )
        try:
            bundle = os.path.abspath(arguments.bundle)
            behind_start(
                lambda rows: seconds(bundle, rows, arguments.way, arguments.actors, arguments.cpus),
                arguments.rows,
            )
        finally:
            ray.shutdown()


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRON.items()):
        os.execve(  # noqa: S606 (Ray reads its environment when it is imported)
            sys.executable,
            [sys.executable, "-m", "bench.batch.over_ray", *sys.argv[1:]],
            {**os.environ, **ENVIRON},
        )
    main()
