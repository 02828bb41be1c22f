"""Load the fronts of gRPC in turn, and compare: calls a second, and processor time of a call.

    python -m bench.serving.grpc_fronts [--rounds N] [--seconds S] [--save]

Needs h2load. Triton is a third, where its environment (`python -m bench.serving.prepare`) and what it needs are there. Each
runs all the time, stopped in its tracks unless it is its turn. Answers are compared with the model's own before and
after. Ratios are to aio, of the figures of a round, next to each other in time, and of these the median: the machine's other
work hits all.
"""

import argparse
import contextlib
import dataclasses
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.charts import OURS, THEIRS, describe_figure, drawing, on
from bench.charts import save as save_figure
from bench.machine import heading
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
_NAMES = {"aio": "hloserve, grpc.aio", "ngh2": "hloserve, ngh2", "triton": "Triton"}


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
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/grpc-DATE-pythonVERSION.*"
    )
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
                print(f"round {round_ + 1}: {cell}", file=sys.stderr, flush=True)
                turns = random.sample(fronts, len(fronts))
                rows += [front.measure(cell, arguments.seconds, round_) for front in turns]
    summary = summarize(rows)
    print(table(summary))
    if arguments.save:
        save(rows, summary)
    return 0


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each front's medians of each cell, and the medians of its rounds' ratios to aio."""
    found = []
    for kind, connections, at_once in CELLS:
        cell = f"{kind} {connections}x{at_once}"
        by = {(row.front, row.round): row for row in rows if row.cell == cell}
        for front in dict.fromkeys(row.front for row in rows):
            pairs = [(by["aio", row.round], row) for row in by.values() if row.front == front]
            if not pairs:
                continue
            found.append(
                {
                    "cell": cell,
                    "connections": connections * at_once,
                    "server": front,
                    "rounds": len(pairs),
                    **{
                        name: statistics.median(getattr(row, name) for _, row in pairs)
                        for name in ("per_second", "p50_us", "cpu_us")
                    },
                    "of_aio": statistics.median(r.per_second / aio.per_second for aio, r in pairs),
                    "less_cpu": statistics.median(aio.cpu_us / r.cpu_us for aio, r in pairs),
                }
            )
    return found


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures for people."""
    lines = [
        f"{'cell':<14} {'front':<7} {'per s':>8} {'x':>5} {'p50 us':>8} {'CPU us':>8} {'x':>5}"
    ]
    lines += [
        f"{s['cell']:<14} {s['server']:<7} {s['per_second']:8,.0f} {s['of_aio']:5.2f} "
        f"{s['p50_us']:8.0f} {s['cpu_us']:8.0f} {s['less_cpu']:5.2f}"
        for s in summary
    ]
    return "\n".join(lines)


def save(rows: Sequence[Row], summary: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures and their chart."""
    rows_ = [dataclasses.asdict(row) for row in rows]
    figures = {"peers": prepare.versions(), "summary": summary, "rows": rows_}
    results.save("grpc", figures, chart)


def chart(found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw the calls per second of each front in each cell."""
    summary = found["summary"]
    cells_ = list(dict.fromkeys(s["cell"] for s in summary))
    figure, axes = drawing().subplots(
        1, len(cells_), figsize=(2.2 * len(cells_), 2.4), layout="constrained", sharey=True
    )
    for axis, cell in zip(axes, cells_, strict=True):
        bars = [s for s in reversed(summary) if s["cell"] == cell]
        drawn = axis.barh(
            [_NAMES[s["server"]] for s in bars],
            [s["per_second"] for s in bars],
            color=[THEIRS if s["server"] == "triton" else OURS for s in bars],
        )
        axis.bar_label(drawn, labels=[f"{s['per_second']:,.0f}" for s in bars], padding=3)
        axis.set(title=cell)
        axis.margins(x=0.4)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    describe_figure(
        figure,
        "Calls per second over gRPC, one row of 128 tokens each, one process",
        [
            f"{day}, {on(found['machine'])}, load generator on the same cores.",
            (
                f"Medians of {max(s['rounds'] for s in summary)} rounds; more is better. Above each panel: connections x calls of each at "
                "once; of a stream, requests per second."
            ),
        ],
    )
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
