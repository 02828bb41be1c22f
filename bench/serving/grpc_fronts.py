"""Load the fronts of gRPC in turn, and compare: calls a second, and processor time of a call.

    python -m bench.serving.grpc_fronts [--rounds N] [--seconds S] [--json FILE]

Needs h2load. Triton is a third, where its environment (`python -m bench.serving.prepare`) and what it needs are there. Each
runs all the time, stopped in its tracks unless it is its turn. Answers are compared with the model's own before and
after. Ratios are to aio, of the figures of a round, next to each other in time, and of these the median: the machine's other
work hits all.
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

from bench.machine import describe, heading
from bench.serving import cells, load, prepare, process, workload

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# Method, connections, and calls of each at once.
CELLS = (
    ("unary", 1, 1),
    ("unary", 1, 16),
    ("unary", 1, 64),
    ("unary", 8, 1),
    ("unary", 8, 2),
    ("unary", 8, 8),
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
        command, env = _triton(self._port) if front == "triton" else _ours(front, self._port)
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


def _ours(front: str, port: int) -> tuple[list[str], dict[str, str]]:
    command = [prepare.PYTHON, "-m", "server", "--host", "127.0.0.1", "--grpc-front", front]
    command += ["--bundle", str(prepare.BUNDLES["text_classifier"]), "--processes", "1"]
    return command, {"HLOSERVE_GRPC_PORT": str(port), "AIP_HTTP_PORT": "0"}


def _triton(port: int) -> tuple[list[str], dict[str, str]]:
    folder = prepare.triton_repository(16, "dynamic_batching { }", 1)
    http = str(process.free_port())
    command = [part.replace("{port}", http) for part in prepare.triton_command(folder, port)]
    return command, {
        **cells.ONE_THREAD,
        **prepare.triton_env(),
        "BENCH_PARAMS": str(prepare.PARAMS),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving.grpc_fronts", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args()
    print(heading(), flush=True)
    if not prepare.BUNDLES["text_classifier"].exists():
        prepare.bundles()
    work = workload.texts(prepare.params())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        names = ["aio", "ngh2"] + ["triton"] * prepare.has_triton()
        fronts = [Front(name, work, Path(folder), prepare.ROOT) for name in names]
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
        figures = [dataclasses.asdict(row) for row in rows]
        arguments.json.write_text(json.dumps({**describe(), "rows": figures}, indent=1))
    return 0


def table(rows: list[Row]) -> str:
    """Return each front's medians of each cell, and the medians of its rounds' ratios to aio."""
    lines = [
        f"{'cell':<14} {'front':<7} {'per s':>8} {'x':>5} {'p50 us':>8} {'CPU us':>8} {'x':>5}"
    ]
    for cell, front in sorted({(row.cell, row.front) for row in rows}):
        by = {(row.front, row.round): row for row in rows if row.cell == cell}
        pairs = [(by["aio", row.round], row) for row in by.values() if row.front == front]
        speed, latency, cpu = (
            statistics.median(getattr(row, name) for _, row in pairs)
            for name in ("per_second", "p50_us", "cpu_us")
        )
        faster = statistics.median(row.per_second / aio.per_second for aio, row in pairs)
        cheaper = statistics.median(aio.cpu_us / row.cpu_us for aio, row in pairs)
        lines.append(
            f"{cell:<14} {front:<7} {speed:8,.0f} {faster:5.2f} {latency:8.0f} {cpu:8.0f} {cheaper:5.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
