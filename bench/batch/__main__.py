"""Measure batch prediction: `python -m bench.batch [--rounds N] [--scale F] [--only NAME] [--save]`.

Needs the bundles of `python -m bench.serving.prepare`. Cells of a comparison are interleaved, each in a process of its
own, and given as medians; rates leave out what a start takes.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.batch import workload

ROOT = Path(__file__).parents[2]
BUNDLES = ROOT / "build" / "bench"


def rate(*command):
    """Run a command that prints rows and seconds as JSON; return rows a second."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["rows"] / found["seconds"]


def predict(bundle, source, out, *options):
    """Return the rows a second of a run; its output is removed first."""
    shutil.rmtree(out, ignore_errors=True)
    return rate(
        *("runtime", "predict", bundle, source, "--out", out, "--device", "cpu", "--json"),
        *("--cache", out.parent / "cache"),
        *options,
    )


def comparisons(folder, scale):
    """Yield the name of a comparison and its cells: a name and a function that returns rows a second."""
    minilm, classifier = BUNDLES / "minilm", BUNDLES / "text_classifier"
    out, cache = folder / "out", folder / "cache"

    def source(name, bundle, rows, lengths=None):
        path = folder / name
        if not path.exists():
            workload.write(path, workload.columns(bundle, rows, lengths))
        return path

    few, many = int(4_000 * scale), int(100_000 * scale)
    yield (
        "MiniLM, full buckets of 32 tokens",
        {
            "bare programs": lambda: rate("bench.batch.bare", minilm, few, cache),
            **{
                f"predict from {kind}": lambda kind=kind: predict(
                    minilm, source(f"full.{kind}", minilm, few), out
                )
                for kind in ("npz", "jsonl", "parquet")
            },
            "plain loop, padded to 128": lambda: rate(
                "bench.batch.plain",
                minilm,
                source("full.jsonl", minilm, few),
                folder / "plain",
                cache,
            ),
        },
    )
    yield (
        "MiniLM, lengths of 3 to 128",
        {
            "plain loop, padded to the longest": lambda: rate(
                "bench.batch.plain",
                minilm,
                source("mixed.jsonl", minilm, few, 128),
                folder / "plain",
                cache,
            ),
            "predict from jsonl": lambda: predict(
                minilm, source("mixed.jsonl", minilm, few, 128), out
            ),
        },
    )
    yield (
        "classifier",
        {
            "bare programs": lambda: rate("bench.batch.bare", classifier, many, cache),
            "predict from npz to npz": lambda: predict(
                classifier, source("c.npz", classifier, many), out, "--format", "npz"
            ),
            "predict from npz to jsonl": lambda: predict(
                classifier, source("c.npz", classifier, many), out
            ),
            "predict from jsonl to jsonl": lambda: predict(
                classifier, source("c.jsonl", classifier, many), out
            ),
            "plain loop from npz to jsonl": lambda: rate(
                "bench.batch.plain",
                classifier,
                source("c.npz", classifier, many),
                folder / "plain",
                cache,
            ),
        },
    )
    yield (
        "classifier from npz to npz, by rows",
        {
            f"{rows} rows": lambda rows=rows: predict(
                classifier, source(f"r{rows}.npz", classifier, rows), out, "--format", "npz"
            )
            for rows in (int(n * scale) for n in (10**4, 10**5, 10**6))
        },
    )


def main():
    """Measure, print, and save where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--only", default="", help="comparisons whose name begins so")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the medians as JSON")
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cells in comparisons(Path(folder), arguments.scale):
            if not name.startswith(arguments.only):
                continue
            seen = {cell: [] for cell in cells}
            for _ in range(arguments.rounds):
                for cell, measure in cells.items():
                    seen[cell].append(measure())
            medians = {cell: statistics.median(rates) for cell, rates in seen.items()}
            first = next(iter(medians.values()))
            print(f"\n{name}")
            for cell, median in medians.items():
                print(f"  {cell:<36} {median:>10,.0f} rows/s  {median / first:>5.2f}")
            results[name] = medians
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nlargest memory of a process: {peak:,.0f} MiB")
    if arguments.save:
        arguments.save.write_text(
            json.dumps({"rows_per_second": results, "peak_mib": peak}, indent=1)
        )


if __name__ == "__main__":
    main()
