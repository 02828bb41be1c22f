"""The bare programs: the largest bucket of each length, called on arrays that are there already.

    python -m bench.batch.bare BUNDLE INPUT CACHE

The arrays are those that `predict` reads from the same npz file, each batch another: lookups in a table of
embeddings cost more where rows differ than where a batch is repeated.
"""

import json
import sys
import time

import numpy as np

from runtime import load


def main(bundle, source, cache):
    """Print as JSON the rows that filled whole batches, and the seconds that they took."""
    model = load(bundle, "cpu", cache_dir=cache)
    specs = model.signature.inputs
    with np.load(source) as found:
        arrays = {spec.name: found[spec.name] for spec in specs if not spec.mask}
    rows = next(iter(arrays.values()))
    group = model.group(rows.shape[1 : 1 + len(model.signature.axes)])
    batch = max(group.programs)
    program = group.programs[batch]
    batches = [
        tuple(
            np.ones(rows[begin : begin + batch].shape, spec.dtype)
            if spec.mask
            else arrays[spec.name][begin : begin + batch]
            for spec in specs
        )
        for begin in range(0, len(rows) - batch + 1, batch)
    ]
    program.call(model.params, batches[0])
    begin = time.perf_counter()
    for inputs in batches:
        program.call(model.params, inputs)
    seconds = time.perf_counter() - begin
    print(json.dumps({"rows": len(batches) * batch, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
