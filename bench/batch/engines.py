"""Measure bundles in Beam and Ray beside `predict` and the plain way: `python -m bench.batch.engines [--rows N] [--rounds N]`.

Needs the bundles of `python -m bench.serving.prepare`, and the environments of `./build.sh engines`. Cells are
interleaved, each in a process of its own, and given as medians, ratios within a round; what a start takes stands beside
them.
"""

import argparse
import tempfile
from pathlib import Path

from bench.batch import workload
from bench.batch.__main__ import BUNDLES
from bench.batch.cell import ROOT, measured, medians, save_rates

ENGINES = ROOT / "build" / "engines"
WAYS = ("handler", "plain", "nothing")


def cells(bundle, rows, folder, timeout):
    """Return the name of each cell and a function that measures it."""
    source = folder / "rows.npz"
    workload.write(source, workload.columns(bundle, rows))

    def predict():
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return measured(
                *("runtime", "predict", bundle, source, "--out", Path(out) / "out"),
                *("--format", "npz", "--device", "cpu", "--json"),
                timeout=timeout,
            )

    found = {"predict, from npz to npz": predict}
    for engine in ("beam", "ray"):
        for way in WAYS:
            found[f"{engine}: {way}"] = lambda engine=engine, way=way: measured(
                *(f"bench.batch.over_{engine}", bundle, rows, way),
                python=ENGINES / engine / "bin" / "python",
                timeout=timeout,
            )
    return found


def main():
    """Measure, print, and save where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch.engines", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=BUNDLES / "text_classifier")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cells whose name begins so")
    parser.add_argument("--timeout", type=float, default=3600, help="of a cell, in seconds")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/engines-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measures = cells(arguments.bundle, arguments.rows, Path(folder), arguments.timeout)
        seen = {name: [] for name in measures if name.startswith(arguments.only)}
        for _ in range(arguments.rounds):
            for name, rounds in seen.items():
                rounds.append(measures[name]())
    found = medians(seen)
    title = f"{arguments.bundle.name}, {arguments.rows:,} rows"
    print(title)
    for name, (rate, start, ratio) in found.items():
        print(f"  {name:<28} {rate:>10,.0f} rows/s  {ratio:>5.2f}  start {start:>5.1f} s")
    if arguments.save:
        save_rates("engines", "Rows a second in engines, without their start", {title: found})


if __name__ == "__main__":
    main()
