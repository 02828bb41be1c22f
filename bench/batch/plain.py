"""What one writes without this project: a loop that reads, pads, calls jax.jit of the model on each batch, and writes.

    python -m bench.batch.plain MODEL INPUT OUT LENGTH

It has the Flax model and its weights, and no bundle. Rows are padded to one length, since jit compiles for each; what
that takes is left out, as `predict` leaves out its start.
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

BATCH = {"minilm": 32, "text_classifier": 64}


def minilm():
    """Return a function of padded ids, and of the lengths of rows."""
    from examples.minilm.model import MiniLM, spec

    variables = jax.device_put(spec().params)
    apply = jax.jit(MiniLM().apply)
    return "input_ids", lambda ids, mask: apply(variables, ids, mask)["embedding"]


def text_classifier():
    """Return likewise; the classifier has no mask."""
    from bench.serving.prepare import params
    from examples.text_classifier.model import TextClassifier

    variables = jax.device_put({"params": params()})
    apply = jax.jit(TextClassifier().apply)
    return "x", lambda ids, _: apply(variables, ids)


def main(model, source, out, length):
    """Answer all rows of a file; print the seconds that it took as JSON."""
    name, answer = {"minilm": minilm, "text_classifier": text_classifier}[model]()
    size, length = BATCH[model], int(length)
    blank = np.ones((size, length), np.int32)
    jax.block_until_ready(answer(blank, blank))
    begin = time.perf_counter()
    count = 0
    with Path(out).open("w") as file:
        for rows in batches(source, name, size):
            predictions = np.asarray(answer(*padded(rows, size, length)))[: len(rows)]
            file.writelines(json.dumps({"prediction": p}) + "\n" for p in predictions.tolist())
            count += len(rows)
    print(json.dumps({"rows": count, "seconds": time.perf_counter() - begin}))


def batches(source, name, size):
    """Yield at most `size` rows of ids at once."""
    if source.endswith(".npz"):
        with np.load(source) as found:
            ids = found[name]
        for i in range(0, len(ids), size):
            yield ids[i : i + size]
        return
    rows = []
    with Path(source).open() as file:
        for line in file:
            rows.append(json.loads(line)[name])
            if len(rows) == size:
                yield rows
                rows = []
    if rows:
        yield rows


def padded(rows, size, length):
    """Return a batch of ids and its mask, both int32[size, length]."""
    if isinstance(rows, np.ndarray) and rows.shape == (size, length):
        return rows, np.ones_like(rows)
    ids, mask = np.zeros((2, size, length), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


if __name__ == "__main__":
    main(*sys.argv[1:])
