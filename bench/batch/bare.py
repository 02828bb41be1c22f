"""The bare programs: the largest bucket of each length, called on arrays that are there already.

python -m bench.batch.bare BUNDLE ROWS CACHE [SIZE]
"""

import json
import sys
import time

import numpy as np

from bench.batch.workload import SEED
from runtime import load


def main(bundle, rows, cache, size=None):
    """Print as JSON the seconds that so many rows take."""
    model = load(bundle, "cpu", cache_dir=cache)
    sizes = () if not model.signature.axes else (int(size),) if size else min(model.groups)
    group = model.groups[sizes]
    batch = max(group.programs)
    program = group.programs[batch]
    named = dict(zip((axis.name for axis in model.signature.axes), sizes, strict=True))
    chance = np.random.default_rng(SEED)
    inputs = tuple(
        np.ones(shape, spec.dtype)
        if spec.mask
        else chance.integers(1, spec.maximum or 100, shape).astype(spec.dtype)
        for spec in model.signature.inputs
        for shape in [spec.concrete(batch, named)]
    )
    program.call(model.params, inputs)
    runs = max(1, int(rows) // batch)
    begin = time.perf_counter()
    for _ in range(runs):
        program.call(model.params, inputs)
    print(json.dumps({"rows": runs * batch, "seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main(*sys.argv[1:])
