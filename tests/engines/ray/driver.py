"""Ray on this machine alone: `python -m tests.engines.ray.driver BUNDLES WORK`, which prints what it found as JSON.

A process of its own, so that a Ray that does not start is ended, and leaves nothing behind. The test sets
the environment that keeps Ray on the loopback.
"""

import ipaddress
import json
import os
import re
import socket
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from hloserve.ray import HloservePredictor
from tests.engines.exported import shown

ROWS = 2000
# Ray begins no actor that asks for more of a small machine than it has free.
CPUS = 0.5


class Seen(HloservePredictor):
    """A predictor that reports for each batch whether it is writeable, and the process that ran it."""

    def __call__(self, batch):
        """Score a batch."""
        found = super().__call__(batch)
        rows = len(batch["id"])
        return found | {
            "writeable": np.full(rows, batch["x"].flags.writeable),
            "process": np.full(rows, os.getpid()),
            "threads": np.full(rows, os.environ.get("NPROC", "")),
        }


def rows_of(batch):
    """Make rows of their numbers: left of the middle for even ones, and one of 500 that does not fit."""
    ids = batch["id"]
    x = np.stack([1 - 2.0 * (ids % 2), 2.0 * (ids % 2) - 1], axis=1).astype(np.float32)
    return {"id": ids, "x": x}


def arrays(bundle):
    """Score rows of arrays on a pool of two actors."""
    scored = (
        ray.data.range(ROWS, override_num_blocks=4)
        .map_batches(rows_of_range, num_cpus=0.25)
        .map_batches(
            Seen,
            fn_constructor_kwargs={"bundle": str(bundle), "passthrough": ("id",)},
            batch_size=256,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=CPUS,
        )
        .take_all()
    )
    return {
        "ids": sorted(int(row["id"]) for row in scored) == list(range(ROWS)),
        "right": sum(row["label"] == ("left", "right")[row["id"] % 2] for row in scored),
        "columns": sorted(scored[0]),
        "writeable": any(row["writeable"] for row in scored),
        "processes": len({row["process"] for row in scored}),
        "threads": sorted({row["threads"] for row in scored}),
    }


def rows_of_range(batch):
    """Make rows of the numbers of `ray.data.range`."""
    return rows_of({"id": batch["id"]})


def texts(bundle):
    """Score texts, one of which is too long."""
    found = [" ".join(["cat"] * (1 + i % 6)) for i in range(50)]
    found[7] = " ".join(["cat"] * 20)
    scored = (
        ray.data.from_items([{"text": text} for text in found], override_num_blocks=2)
        .map_batches(
            HloservePredictor,
            fn_constructor_kwargs={
                "bundle": str(bundle),
                "passthrough": ("text",),
                "error_column": "error",
            },
            batch_size=32,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=CPUS,
        )
        .take_all()
    )
    return {
        "texts": sorted(row["text"] for row in scored) == sorted(found),
        "errors": [row["error"] for row in scored if row["error"]],
        "answered": sum(bool(np.isfinite(row["mean"]).all()) for row in scored),
    }


def example(bundle, work):
    """Run the example on a Parquet file with a row that does not fit."""
    sys.path.insert(0, "examples")
    import ray_parquet

    (work / "in").mkdir()
    xs = [[float(i % 7), 3.0] for i in range(200)]
    xs[17] = [1.0]
    table = pa.table({"id": pa.array(range(200)), "x": pa.array(xs, pa.list_(pa.float32()))})
    pq.write_table(table, work / "in" / "rows.parquet")
    arguments = [
        "--bundle",
        str(bundle),
        "--input",
        str(work / "in"),
        "--output",
        str(work / "out"),
    ]
    ray_parquet.main([*arguments, "--cpus", str(CPUS)])
    rows = pq.read_table(work / "out").to_pylist()
    return {
        "rows": len(rows),
        "right": sum(
            row["label"] == ("left" if xs[row["id"]][0] >= 3 else "right")
            for row in rows
            if not row["error"]
        ),
        "errors": [[row["id"], row["error"]] for row in rows if row["error"]],
    }


def guide(bundle):
    """Run what docs/batch.md shows, on the half of a small machine."""
    names = {}
    code = shown("HloservePredictor").replace("/models/bundle", str(bundle))
    code = code.replace("size=2", "size=1").replace("num_cpus=1", f"num_cpus={CPUS}")
    exec(code, names)  # noqa: S102
    return {row["id"]: row["label"] or row["error"] for row in names["scored"].take_all()}


def listening(mark):
    """Return the addresses that processes with a mark in their environment listen on."""
    inodes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark not in (folder / "environ").read_bytes():
                continue
            links = [str(fd.readlink()) for fd in (folder / "fd").iterdir()]
        except OSError:  # it has ended, or is of another user
            continue
        inodes |= {found[1] for link in links if (found := re.match(r"socket:\[(\d+)\]", link))}
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in inodes:
                words = bytes.fromhex(local.partition(":")[0])
                packed = b"".join(
                    struct.pack(">I", word) for (word,) in struct.iter_unpack("=I", words)
                )
                family = socket.AF_INET6 if len(packed) == 16 else socket.AF_INET
                address = ipaddress.ip_address(socket.inet_ntop(family, packed))
                found.add(str(getattr(address, "ipv4_mapped", None) or address))
    return sorted(found)


def main(bundles, work):
    """Start Ray, run all, and stop it."""
    # Sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as temporary:
        say("starting ray")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            _temp_dir=temporary,
        )
        try:
            found = {}
            for name, run in {
                "arrays": lambda: arrays(bundles / "sides"),
                "texts": lambda: texts(bundles / "sentences"),
                "guide": lambda: guide(bundles / "sides"),
                "example": lambda: example(bundles / "sides", work),
            }.items():
                say(name)
                found[name] = run()
            found["listening"] = listening(f"HLOSERVE_TEST_RAY={work}".encode())
        finally:
            ray.shutdown()
    print(json.dumps(found))


def say(what):
    """Print the current step, for a test that times out."""
    print(f"ray driver: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
