"""Measure batch prediction: `python -m bench.batch [--rounds N] [--scale F] [--only NAME] [--save]`.

Needs the bundles of `python -m bench.serving.prepare`. Cells of a comparison are interleaved, every other round
backwards, each in a process of its own, and given as medians; ratios are medians of the ratios within a round. A rate
leaves out what a start takes: for all cells that is the time of the process without that of the rows, and it stands
beside the rate.
"""

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.batch import workload
from bench.batch.cell import ROOT, measured, medians, save_rates
from bench.machine import heading

BUNDLES = ROOT / "build" / "bench"


class Comparison(NamedTuple):
    """Cells that are measured in turn, each compared with the first.

    Attributes:
      name: of the comparison.
      cells: a name to a function that measures.
      goals: a cell to the least ratio to the first.
    """

    name: str
    cells: dict
    goals: dict


class Cells:
    """Makes cells.

    Args:
      folder: of inputs, outputs and compiled programs.
    """

    def __init__(self, folder):
        self._folder = folder
        self._cache = folder / "cache"

    def source(self, name, model, rows, length=None):
        """Return the path of an input, which is made if it is not there."""
        path = self._folder / name
        if not path.exists():
            workload.write(path, workload.columns(BUNDLES / model, rows, length))
        return path

    def compile(self, model, source):
        """Have the programs compiled, and kept for all cells."""
        self.predict(model, source, "--limit", "1")()

    def bare(self, model, source):
        """Return a cell of the programs alone."""
        return lambda: measured("bench.batch.bare", BUNDLES / model, source, self._cache)

    def plain(self, model, source, length):
        """Return a cell of a loop over jit."""
        return lambda: measured("bench.batch.plain", model, source, self._folder / "plain", length)

    def predict(self, model, source, *options):
        """Return a cell of a batch prediction, whose output is removed first."""
        out = self._folder / "out"
        command = ("runtime", "predict", BUNDLES / model, source, "--out", out, "--device", "cpu")

        def measure():
            shutil.rmtree(out, ignore_errors=True)
            return measured(*command, "--json", "--cache", self._cache, *options)

        return measure


def comparisons(cells, scale):
    """Yield comparisons, whose inputs are there by then, and whose programs are compiled."""
    few, many = int(1_024 * scale), int(100_000 * scale)
    formats = ("npz", "jsonl", "parquet")
    full = {kind: cells.source(f"full.{kind}", "minilm", few) for kind in formats}
    cells.compile("minilm", full["npz"])
    yield Comparison(
        "MiniLM, full buckets of 32 tokens",
        {
            "bare programs": cells.bare("minilm", full["npz"]),
            **{f"predict from {kind}": cells.predict("minilm", full[kind]) for kind in formats},
            "plain loop from jsonl": cells.plain("minilm", full["jsonl"], 32),
        },
        {f"predict from {kind}": 0.95 for kind in formats},
    )
    mixed = cells.source("mixed.jsonl", "minilm", few // 2, 128)
    yield Comparison(
        "MiniLM, lengths of 3 to 128",
        {
            "plain loop, padded to the longest": cells.plain("minilm", mixed, 128),
            "predict from jsonl": cells.predict("minilm", mixed),
        },
        {"predict from jsonl": 2.0},
    )
    npz = cells.source("c.npz", "text_classifier", many)
    jsonl = cells.source("c.jsonl", "text_classifier", many)
    cells.compile("text_classifier", npz)
    yield Comparison(
        "classifier",
        {
            "bare programs": cells.bare("text_classifier", npz),
            "predict from npz to npz": cells.predict("text_classifier", npz, "--format", "npz"),
            "predict from npz to jsonl": cells.predict("text_classifier", npz),
            "predict from jsonl to jsonl": cells.predict("text_classifier", jsonl),
            "plain loop from npz to jsonl": cells.plain("text_classifier", npz, 128),
        },
        {"predict from npz to npz": 0.8},
    )
    counts = [int(n * scale) for n in (10**4, 10**5, 10**6)]
    files = [cells.source(f"r{rows}.npz", "text_classifier", rows) for rows in counts]
    yield Comparison(
        "classifier from npz to npz, by rows",
        {
            f"{rows} rows": cells.predict("text_classifier", file, "--format", "npz")
            for rows, file in zip(counts, files, strict=True)
        },
        {},
    )


def compare(comparison, rounds):
    """Measure the cells of a comparison in turn; return the medians of each."""
    names = list(comparison.cells)
    seen = {name: [] for name in names}
    for i in range(rounds):
        for name in names if i % 2 == 0 else reversed(names):
            seen[name].append(comparison.cells[name]())
    return medians(seen)


def show(comparison, found):
    """Print the medians of a comparison."""
    print(f"\n{comparison.name}")
    for cell, (rate, start, ratio) in found.items():
        goal = comparison.goals.get(cell)
        aim = "" if goal is None else f"  (goal {goal}: {'met' if ratio >= goal else 'missed'})"
        print(
            f"  {cell:<36} {rate:>10,.0f} rows/s  {ratio:>5.2f}  start {start:>5.1f} s{aim}",
            flush=True,
        )


def main():
    """Measure, print, and save where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--only", default="", help="comparisons whose name begins so")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/batch-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    print(heading())
    begin = time.perf_counter()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for comparison in comparisons(Cells(Path(folder)), arguments.scale):
            if comparison.name.startswith(arguments.only):
                found[comparison.name] = compare(comparison, arguments.rounds)
                show(comparison, found[comparison.name])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nlargest memory of a process: {peak:,.0f} MiB; {time.perf_counter() - begin:,.0f} s")
    if arguments.save:
        save_rates(
            "batch", "Rows a second of batch prediction, without its start", found, peak_mib=peak
        )


if __name__ == "__main__":
    main()
