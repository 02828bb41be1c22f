"""On an accelerator: the bare programs, two batches at once, and what the server makes of them.

    python -m bench.gpu [--device cuda] [--seconds S] [--out FILE]

Needs nothing but this checkout with its `server` extra and Flax. The model is MiniLM's in shape,
with random weights. Takes about five minutes with a device that compiles quickly.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench.machine import describe
from examples.minilm.model import VOCABULARY, MiniLM
from export import TensorSpec, export_model
from runtime import load
from runtime.description import columns
from runtime.device import device_kind, driver_versions
from server.bench.load_generator import post, send

BUCKETS, LENGTHS = (1, 8, 32, 128), (32, 128)
CONNECTIONS = (1, 64)
ROWS = (1, 8, 32)


def export(folder: Path, platform: str) -> Path:
    """Export the model for this platform."""
    ids = np.ones((1, 8), np.int32)
    shape = ("_", "seq")
    export_model(
        MiniLM(),
        MiniLM().init(jax.random.key(0), ids, ids),
        inputs=[
            TensorSpec(
                name="input_ids", dtype="int32", shape=shape, minimum=0, maximum=VOCABULARY - 1
            ),
            TensorSpec(name="attention_mask", dtype="int32", shape=shape, mask=True),
        ],
        buckets=BUCKETS,
        axes={"seq": LENGTHS},
        platforms=(platform,),
        name="encoder",
        out=folder / "bundle",
    )
    return folder / "bundle"


def bare(bundle: Path, device: str, seconds: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run each program alone, one batch at a time and two, and say rows/s."""
    model = load(bundle, device)
    about = {"device": device_kind(model.device), **driver_versions(model.device)}
    rows = []
    with ThreadPoolExecutor(2) as two:
        for sizes, group in model.groups.items():
            for batch, program in group.programs.items():
                inputs = model.blank(batch, sizes)

                def run(until: float, program=program, inputs=inputs) -> int:
                    runs = 0
                    while time.perf_counter() < until:
                        model.run(program, inputs)
                        runs += 1
                    return runs

                one = run(time.perf_counter() + seconds)
                until = time.perf_counter() + seconds
                both = sum(two.map(run, (until, until)))
                rows.append(
                    {
                        "length": sizes[0],
                        "batch": batch,
                        "ms": seconds / one * 1e3,
                        "rows_per_s": one * batch / seconds,
                        "two_at_once": both / one,
                    }
                )
    return about, rows


@contextlib.contextmanager
def served(bundle: Path, device: str) -> Iterator[int]:
    """Run the server; yields its port."""
    command = [sys.executable, "-m", "server", "--bundle", str(bundle), "--device", device]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0", "--grpc-port", "-1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if "ready: " in line:
                    break
            else:
                raise SystemExit("error: the server did not become ready")
            yield int(line.partition("127.0.0.1:")[2].partition("/")[0])
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def requests(rows: int, length: int, *, binary: bool) -> list[bytes]:
    """Write requests of so many sentences."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(16):
        ids = rng.integers(1000, VOCABULARY, (rows, length), np.int32)
        if not binary:
            body = {"instances": [{"input_ids": row} for row in ids.tolist()]}
            made.append(post("/predict", json.dumps(body).encode()))
            continue
        tensor = {
            "name": "input_ids",
            "shape": ids.shape,
            "datatype": "INT32",
            "parameters": {"binary_data_size": ids.nbytes},
        }
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        extra = f"\r\ninference-header-content-length: {len(head)}\r\ncontent-length"
        whole = post("/v2/models/encoder/infer", head + ids.tobytes())
        whole = whole.replace(b"application/json", b"application/octet-stream", 1)
        made.append(whole.replace(b"\r\ncontent-length", extra.encode(), 1))
    return made


def through_server(bundle: Path, device: str, seconds: float) -> list[dict[str, Any]]:
    """Load the server in both forms of a body."""
    rows = []
    with served(bundle, device) as port:
        for length in LENGTHS:
            for count in ROWS:
                for connections in CONNECTIONS:
                    for binary in (False, True):
                        made = requests(count, length, binary=binary)
                        figures = asyncio.run(send("127.0.0.1", port, made, connections, seconds))
                        rows.append(
                            {
                                "length": length,
                                "rows": count,
                                "connections": connections,
                                "body": "binary" if binary else "JSON",
                                "rows_per_s": figures.per_second * count,
                                "p50_ms": figures.quantile(0.5) * 1e3,
                                "failed": figures.failed,
                            }
                        )
    return rows


def tables(alone: list[dict[str, Any]], through: list[dict[str, Any]]) -> str:
    """Write the figures for people; the best program of a length is what a server could reach."""
    best = {
        length: max(
            r["rows_per_s"] * max(1, r["two_at_once"]) for r in alone if r["length"] == length
        )
        for length in LENGTHS
    }
    first = [("length", "batch", "call", "rows/s", "two at once")]
    first += [
        (
            str(r["length"]),
            str(r["batch"]),
            f"{r['ms']:.2f} ms",
            f"{r['rows_per_s']:,.0f}",
            f"{r['two_at_once']:.2f} ×",
        )
        for r in alone
    ]
    second = [("length", "rows", "connections", "body", "rows/s", "of bare", "p50", "failed")]
    second += [
        (
            str(r["length"]),
            str(r["rows"]),
            str(r["connections"]),
            r["body"],
            f"{r['rows_per_s']:,.0f}",
            f"{r['rows_per_s'] / best[r['length']]:.2f}",
            f"{r['p50_ms']:.2f} ms",
            str(r["failed"]),
        )
        for r in through
    ]
    return f"{columns(first)}\n\n{columns(second)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each figure; default: 3")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    # The exporter and the bare programs leave memory for the server beside them.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder), arguments.device.partition(":")[0])
        about, alone = bare(bundle, arguments.device, arguments.seconds)
        about = {**describe(), **about}
        through = through_server(bundle, arguments.device, arguments.seconds)
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"\n{tables(alone, through)}")
    if arguments.out:
        found = {"machine": about, "bare": alone, "server": through}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(row["failed"] for row in through))


if __name__ == "__main__":
    sys.exit(main())
