"""A batch prediction that is killed anywhere loses, doubles and reorders nothing."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pytest import mark

from tests.e2e.batch_kills import killed

# Rows of some ten shards of the classifier's smallest windows.
ROWS = 40_000


def as_jsonl(path, x):
    """Write rows as JSONL, some of them broken."""
    lines = [json.dumps({"x": row, "key": i}) for i, row in enumerate(x.tolist())]
    lines[7::1000] = ["broken"] * len(lines[7::1000])
    path.write_text("\n".join(lines))


def as_parquet(path, x):
    """Write rows as Parquet."""
    pq.write_table(pa.table({"x": x.tolist(), "key": range(len(x))}), path, row_group_size=999)


FORMATS = {
    "jsonl": ("in.jsonl", as_jsonl),
    "parquet": ("in.parquet", as_parquet),
    "npz": ("in.npz", lambda path, x: np.savez_compressed(path, x=x)),
}


@mark.e2e
@mark.parametrize("format_", FORMATS)
def test_a_killed_run_goes_on_to_the_same_bytes(format_, classifier_bundle, tmp_path):
    """Killed at two moments by chance, it ends with every byte of a run that was not killed."""
    name, write = FORMATS[format_]
    write(tmp_path / name, np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32))

    killed(classifier_bundle, tmp_path / name, format_, 2, seed=1, folder=tmp_path)
