"""On an accelerator: starts, the bare programs, two batches at once, and what the server makes of them.

    python -m bench.gpu prepare DIR [--cards t4,l4,a100,h100,h200]
    python -m bench.gpu [--bundle DIR/bundle] [--device cuda] [--seconds S] [--minutes M] [--out FILE]

The first is for a machine without a GPU: it exports the model, and compiles it for cards that are not
there (`./build.sh gpucheck` sets up what that needs). The second is for the GPU's: it needs this checkout with its
`server` extra, and exports by itself, with Flax, where no bundle is given. It compares what is compiled here
with what was compiled there, and leaves out what there is no time for, and says so. The model is MiniLM's in shape, with
random weights.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.made_elsewhere import compared
from bench.gpu.starts import served, starts
from bench.machine import describe
from runtime import load
from runtime.description import columns
from runtime.device import device_kind, driver_versions, find_devices
from runtime.model import Model
from runtime.scaling import on_each, scaling
from server.bench.load_generator import post, send

BUCKETS, LENGTHS = (1, 8, 32, 128), (32, 128)
# Of the model, which is imported only where it is exported: it needs Flax.
VOCABULARY = 30522
CONNECTIONS = (1, 64)
ROWS = (1, 8, 32)


class Deadline:
    """The time that is left of a run."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float) -> bool:
        """Whether there is time for something; what there is none for is noted."""
        allowed = time.monotonic() + seconds < self._end
        if not allowed:
            self.left_out.append(what)
        return allowed


def export(folder: Path, platforms: tuple[str, ...], cards: str, buckets, lengths) -> Path:
    """Export the model for platforms; compile it for cards that need not be here."""
    import jax

    from examples.minilm.model import MiniLM
    from export import TensorSpec, export_model

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
        buckets=buckets,
        axes={"seq": lengths},
        platforms=platforms,
        name="encoder",
        out=folder / "bundle",
        overwrite=True,
        check_gpu=cards or (),
    )
    return folder / "bundle"


def bare(model: Model, seconds: float, deadline: Deadline) -> list[dict[str, Any]]:
    """Run each program alone, one batch at a time and two, and say rows/s."""
    rows = []
    with ThreadPoolExecutor(2) as two:
        for sizes, group in model.groups.items():
            for batch, program in group.programs.items():
                if not deadline.allows(f"program b{batch}-seq{sizes[0]}", 2 * seconds):
                    continue
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
    return rows


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


def through_server(
    bundle: Path, device: str, options: tuple[str, ...], lengths, seconds: float, deadline: Deadline
) -> list[dict[str, Any]]:
    """Load the server in both forms of a body."""
    rows = []
    with served(bundle, device, *options) as (port, _):
        for length in lengths:
            for count in ROWS:
                for connections in CONNECTIONS:
                    for binary in (False, True):
                        what = f"{count} rows of {length}, {connections} connections"
                        if not deadline.allows(what, 1.5 * seconds):
                            continue
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
        for length in {r["length"] for r in alone}
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
            f"{r['rows_per_s'] / best[r['length']]:.2f}" if r["length"] in best else "",
            f"{r['p50_ms']:.2f} ms",
            str(r["failed"]),
        )
        for r in through
    ]
    return f"{columns(first)}\n\n{columns(second)}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    made.add_argument("prepare", nargs="*", metavar="prepare DIR", help="export and compile only")
    made.add_argument(
        "--cards", default="t4,l4,a100,h100,h200", help="of prepare; default: %(default)s"
    )
    made.add_argument("--bundle", type=Path, metavar="DIR", help="that prepare made")
    made.add_argument("--device", default="cuda", help="default: cuda")
    made.add_argument(
        "--devices", default="", metavar="all|N[,N]", help="of the server; default: one"
    )
    made.add_argument("--seconds", type=float, default=3.0, help="of each figure; default: 3")
    made.add_argument("--minutes", type=float, default=8.0, help="of all; default: 8")
    made.add_argument("--buckets", type=_numbers, default=BUCKETS, metavar="N,…")
    made.add_argument("--lengths", type=_numbers, default=LENGTHS, metavar="N,…")
    made.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return made


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> int:
    arguments = parser().parse_args()
    if arguments.prepare:
        command, *folder = arguments.prepare
        if command != "prepare" or len(folder) != 1:
            raise SystemExit(f"error: expected prepare DIR, got {' '.join(arguments.prepare)!r}")
        shapes = arguments.buckets, arguments.lengths
        print(export(Path(folder[0]), ("cpu", "cuda"), arguments.cards, *shapes))
        return 0
    deadline = Deadline(arguments.minutes)
    # The exporter and the bare programs leave memory for the server beside them.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")
    options = ("--devices", arguments.devices) if arguments.devices else ()
    found: dict[str, Any] = {}

    def keep(name: str, figures: Any) -> Any:
        """Write what there is so far: a run that is ended early has not been in vain."""
        found[name] = figures
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        return figures

    with tempfile.TemporaryDirectory() as folder:
        platform = arguments.device.partition(":")[0]
        bundle = arguments.bundle or export(
            Path(folder), (platform,), "", arguments.buckets, arguments.lengths
        )
        cache = Path(folder) / "cache"
        cache.mkdir()
        # First, while no other process has memory of the device.
        keep("starts", starts(bundle, arguments.device, options, cache, deadline.allows))
        devices = find_devices(arguments.device, arguments.devices)
        model = load(bundle, devices[0], cache_dir=cache)
        device = {"device": device_kind(model.device), **driver_versions(model.device)}
        about = keep("machine", {**describe(), **device})
        keep("compiled elsewhere", compared(model, bundle))
        alone = keep("bare", bare(model, arguments.seconds, deadline))
        if deadline.allows("several devices", 4 * arguments.seconds):
            keep("devices", scaling(on_each(model, devices, print), arguments.seconds))
        lengths = sorted({sizes[0] for sizes in model.groups})
        options = (*options, "--cache-dir", str(cache))
        through = through_server(
            bundle, arguments.device, options, lengths, arguments.seconds, deadline
        )
    keep("server", through)
    keep("left out", deadline.left_out)
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"\n{tables(alone, through)}")
    rest = {name: found[name] for name in found if name not in ("machine", "bare", "server")}
    print(f"\n{json.dumps(rest, indent=1)}")
    return int(any(row["failed"] for row in through))


if __name__ == "__main__":
    sys.exit(main())
