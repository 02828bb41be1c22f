"""Rows for a bundle, as files of each format: made of a seed, so that every run has the same."""

import json
import sys
from pathlib import Path

import numpy as np

from runtime.manifest import Manifest

SEED = 20


def columns(bundle, rows, lengths=None):
    """Return inputs for a bundle by name: arrays, or lists of arrays where rows differ in length.

    Args:
      bundle: path of one whose inputs are integers.
      rows: of each.
      lengths: the largest length of rows that differ; None for rows of the shortest bucket's size.
    """
    signature = Manifest.from_bytes((bundle / "manifest.json").read_bytes()).signature
    chance = np.random.default_rng(SEED)
    own = None
    if lengths is not None:  # as sentences are: many short ones, a few long ones
        own = np.clip(chance.gamma(2.0, lengths / 10, rows).astype(int), 3, lengths)
    found = {}
    for spec in signature.inputs:
        if spec.mask:
            continue
        sizes = {axis.name: axis.sizes[0] for axis in signature.axes}
        high = spec.maximum or 100
        if own is None or not signature.axes:
            shape = spec.concrete(rows, sizes)
            found[spec.name] = chance.integers(1, high, shape).astype(spec.dtype)
        else:
            found[spec.name] = [chance.integers(1, high, n).astype(spec.dtype) for n in own]
    return found


def few_rows(signature):
    """Return what rows of the shortest size are made of, by input: dtype, shape and the largest value."""
    sizes = {axis.name: axis.sizes[0] for axis in signature.axes}
    return {
        spec.name: (spec.dtype, spec.concrete(1, sizes)[1:], spec.maximum or 100)
        for spec in signature.inputs
        if not spec.mask
    }


def behind_start(seconds, rows):
    """Print as JSON the rows and seconds behind the start, and the seconds of a first start.

    Args:
      seconds: runs so many rows and returns how long that took. It is called with few rows twice, and with all:
        the second and the third start alike, so that their difference has no start in it.
      rows: of all; so many that they take longer than a start varies.
    """
    few = max(1, rows // 20)
    first, short, long = seconds(few), seconds(few), seconds(rows)
    if long <= short:
        sys.exit(f"rows: expected more than {rows}, which took no longer than {few}")
    start = first - few * (long - short) / (rows - few)
    print(json.dumps({"rows": rows - few, "seconds": long - short, "start": start}))


def write(path: Path, values):
    """Write columns to a file, by the end of its name."""
    if path.suffix == ".npz":
        np.savez(path, **values)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({n: [row.tolist() for row in c] for n, c in values.items()}), path)
    else:
        with path.open("w") as file:
            for row in zip(*values.values(), strict=True):
                instance = {name: value.tolist() for name, value in zip(values, row, strict=True)}
                file.write(json.dumps(instance) + "\n")
