"""Load the fronts of gRPC in turn, and compare: calls a second, and processor time of a call.

    python -m bench.serving.grpc_fronts [--rounds N] [--seconds S] [--json FILE]

Needs h2load. Each front runs all the time, stopped in its tracks unless it is its turn. Answers are
compared with the model's own before and after. The ratio is that of each round's two fronts, next to each
other in time, and of these the median: the machine's other work hits both.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from bench.machine import heading
from bench.serving import load, prepare, process, workload

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# Method, connections, and calls of each at once.
CELLS = (
    ("unary", 1, 1),
    ("unary", 1, 16),
    ("unary", 1, 64),
    ("unary", 8, 2),
    ("unary", 8, 8),
    ("unary", 64, 1),
    ("stream", 1, 16),
)
WARM_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A front in a cell, measured once."""

    front: str
    cell: str
    round: int
    per_second: float
    cpu_us: float
    p50_us: float


class Front:
    """A server with one front, paused unless it is measured."""

    def __init__(self, front: str, work: workload.Workload, folder: Path, cwd: Path) -> None:
        self.name = front
        self._work = work
        self._port = process.free_port()
        self._files = {
            name: work.write(folder / f"{front}-{name}", name) for name in ("grpc", "stream")
        }
        bundle = prepare.BUNDLES["text_classifier"]
        command = [prepare.PYTHON, "-m", "server", "--host", "127.0.0.1", "--bundle", str(bundle)]
        command += ["--processes", "1"]
        command += [] if front == "aio" else ["--grpc-front", front]
        env = {"HLOSERVE_GRPC_PORT": str(self._port), "AIP_HTTP_PORT": "0"}
        self._processes = process.Processes(command, env, cwd, folder / f"{front}.log")

    def wait(self) -> None:
        """Wait for the first answers, which have to be right."""
        first = self._work.body(0, "grpc")
        url = f"http://127.0.0.1:{self._port}{INFER}"
        ready = lambda: workload.answers_at_all(url, "grpc", *first)  # noqa: E731
        process.wait_until(ready, self._processes, 300)
        self._processes.pause()

    def measure(self, cell: tuple[str, int, int], seconds: float, round_: int) -> Row:
        kind, connections, at_once = cell
        path, file = (INFER, "grpc") if kind == "unary" else (STREAM, "stream")
        url = f"http://127.0.0.1:{self._port}{path}"
        each = workload.STREAM if kind == "stream" else 1
        self._processes.resume()
        try:
            self._work.check(url, file)
            load.call(url, self._files[file], connections, WARM_SECONDS, each, at_once)
            before = self._processes.cpu_seconds()
            sent = load.call(url, self._files[file], connections, seconds, each, at_once)
            cpu = self._processes.cpu_seconds() - before
            self._work.check(url, file)
        finally:
            self._processes.pause()
        return Row(
            self.name,
            f"{kind} {connections}x{at_once}",
            round_,
            sent.per_second,
            1e6 * cpu / sent.requests,
            sent.p50_us,
        )

    def stop(self) -> None:
        self._processes.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving.grpc_fronts", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args()
    print(heading(), flush=True)
    if not prepare.BUNDLES["text_classifier"].exists():
        prepare.bundles()
    work = workload.texts(prepare.params())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        fronts = [Front(name, work, Path(folder), prepare.ROOT) for name in ("aio", "ngh2")]
        for front in fronts:
            stack.callback(front.stop)
        for front in fronts:
            front.wait()
        for round_ in range(arguments.rounds):
            for cell in random.sample(CELLS, len(CELLS)):
                turns = random.sample(fronts, len(fronts))
                rows += [front.measure(cell, arguments.seconds, round_) for front in turns]
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    return 0


def table(rows: list[Row]) -> str:
    """Return each cell's medians, and the median of its rounds' ratios."""
    lines = [
        f"{'cell':<14} {'aio/s':>8} {'ngh2/s':>8} {'x':>5} {'aio us':>8} {'ngh2 us':>8} {'x':>5}"
    ]
    for cell in dict.fromkeys(row.cell for row in sorted(rows, key=lambda row: row.cell)):
        by = {(row.front, row.round): row for row in rows if row.cell == cell}
        rounds = sorted({round_ for _, round_ in by})
        pairs = [(by["aio", r], by["ngh2", r]) for r in rounds]
        old, new = (
            [
                statistics.median(getattr(pair[i], name) for pair in pairs)
                for name in ("per_second", "cpu_us")
            ]
            for i in (0, 1)
        )
        faster = statistics.median(b.per_second / a.per_second for a, b in pairs)
        cheaper = statistics.median(a.cpu_us / b.cpu_us for a, b in pairs)
        lines.append(
            f"{cell:<14} {old[0]:8,.0f} {new[0]:8,.0f} {faster:5.2f} {old[1]:8.0f} {new[1]:8.0f} {cheaper:5.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
