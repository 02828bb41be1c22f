"""What one writes without this project: a loop that reads, pads, calls jit on each batch, and writes.

    python -m bench.batch.plain BUNDLE INPUT OUT CACHE

It calls the bundle's own program of the largest bucket, as jit calls what it has compiled, so that both compute the
same. Rows are padded to the longest length there is, as a loop with one shape has to.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from runtime import load


def main(bundle, source, out, cache):
    """Answer all rows of a file; print the seconds that it took as JSON."""
    model = load(bundle, "cpu", cache_dir=cache)
    sizes, group = max(model.groups.items())
    batch = max(group.programs)
    program = group.programs[batch]
    specs = model.signature.inputs
    named = dict(zip((axis.name for axis in model.signature.axes), sizes, strict=True))
    begin = time.perf_counter()
    count = 0
    with Path(out).open("w") as file:
        for rows in batches(source, [s.name for s in specs if not s.mask], batch):
            count += len(next(iter(rows.values())))
            inputs = tuple(padded(spec, rows, spec.concrete(batch, named)) for spec in specs)
            file.writelines(
                json.dumps({"prediction": [o.tolist() for o in row]}) + "\n"
                for row in zip(*cut(program.call(model.params, inputs), rows), strict=True)
            )
    print(json.dumps({"rows": count, "seconds": time.perf_counter() - begin}))


def cut(outputs, rows):
    """Return outputs without the rows that fill up the batch."""
    return [output[: len(next(iter(rows.values())))] for output in outputs]


def batches(source, names, size):
    """Yield columns of at most `size` rows."""
    if source.endswith(".npz"):
        with np.load(source) as found:
            arrays = {name: found[name] for name in names}
        for i in range(0, len(arrays[names[0]]), size):
            yield {name: array[i : i + size] for name, array in arrays.items()}
        return
    rows = []
    with Path(source).open() as file:
        for line in file:
            rows.append(json.loads(line))
            if len(rows) == size:
                yield {name: [row[name] for row in rows] for name in names}
                rows = []
    if rows:
        yield {name: [row[name] for row in rows] for name in names}


def padded(spec, rows, shape):
    """Return a batch of one input."""
    array = np.full(shape, spec.pad, spec.dtype)
    given = rows if not spec.mask else next(iter(rows.values()))
    for i, row in enumerate(given if spec.mask else given[spec.name]):
        array[i, : len(row)] = 1 if spec.mask else row
    return array


if __name__ == "__main__":
    main(*sys.argv[1:])
