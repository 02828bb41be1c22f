"""Kills a run at random moments until it completes, and compares every byte with an uninterrupted run.

    python -m tests.e2e.batch_kills [KILLS [SEED]]

kills runs of each format so often, 50 times unless it is said, and prints how many had not ended.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export import export_model

ROOT = Path(__file__).parents[2]
# Of a bundle whose largest bucket is 4, some ten shards; of npz, which costs next to nothing to read and write, forty.
ROWS = {"jsonl": 40_000, "parquet": 40_000, "npz": 160_000}


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


def made(format_, folder):
    """Write rows of a format; return the path."""
    name, write = FORMATS[format_]
    x = np.random.default_rng(0).normal(size=(ROWS[format_], 4)).astype(np.float32)
    write(folder / name, x)
    return folder / name


def run(bundle, source, format_, out, cache):
    """Start a run in a session of its own."""
    command = [sys.executable, "-m", "runtime", "predict", bundle, source, "--out", out]
    command += ["--format", format_, "--device", "cpu", "--cache", cache, "--json"]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def content(folder):
    """Return every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def killed(bundle, source, format_, kills, seed, folder):
    """Kill runs at random moments; return how many were alive.

    A moment is when so many changes of the folder were seen since the run was started, from 0 on:
    a slow machine is killed at the same places as a fast one.
    """
    chance = random.Random(seed)
    whole, out, cache = folder / "whole", folder / "out", folder / "cache"
    process = run(bundle, source, format_, whole, cache)
    _, err = process.communicate()
    assert process.returncode == 0, err
    wanted = content(whole)
    alive = 0
    for _ in range(kills):
        process = run(bundle, source, format_, out, cache)
        wait_for_changes(out, process, chance.randrange(40))
        if process.poll() is None:
            alive += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        found = content(out) if out.exists() else {}
        complete = b'"complete": true' in found.get("metadata.json", b"")
        for name, data in found.items():
            if not name.startswith((".", "metadata")):
                assert data == wanted[name], f"{name} has other bytes"
        if complete:
            assert found == wanted
            for path in out.iterdir():
                path.unlink()
    process = run(bundle, source, format_, out, cache)
    process.communicate()
    assert content(out) == wanted
    return alive


def wait_for_changes(out, process, count):
    """Wait until the folder has changed so often, or the process has ended."""
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
    seen = None
    changes = itertools.count()
    while not ended.is_set():
        state = listed(out)
        if state != seen:
            seen = state
            if next(changes) >= count:
                return
        os.sched_yield()


def listed(out):
    """Return names and sizes in a folder, as far as they stay while they are looked at."""
    try:
        with os.scandir(out) as entries:
            return [(entry.name, entry.stat().st_size) for entry in entries]
    except OSError:
        return None


def main(kills=50, seed=0):
    """Kill runs of each format, and print how many were still running when killed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle = root / "bundle"
        params = {"w": np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)}
        export_model(
            lambda params, x: x @ params["w"],
            params,
            inputs=["x:float32[_,4]"],
            buckets=(1, 2, 4),
            output="classification:logits",
            labels=["red", "green", "blue"],
            name="killed",
            out=bundle,
        )
        for format_ in FORMATS:
            own = root / format_
            own.mkdir()
            alive = killed(bundle, made(format_, own), format_, kills, seed, own)
            print(
                f"{format_}: {kills} kills, {alive} of a run that had not ended: all bytes equal",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
