"""What connections cost: requests a second, processor time and memory, from 16 to 1,000 of them.

    python -m bench.serving.growth [--rounds N] [--seconds S] [--save]

Needs wrk and h2load. Each entrance is HTTP's predict route, or gRPC's ModelInfer with one of its fronts,
with one request under way on each connection, so many as there are connections. Answers are compared
with the model's own before and after. Memory is what the server occupies while all connections are
open; a connection's is what it has grown by since the fewest, which includes the requests that wait.
"""

import argparse
import contextlib
import dataclasses
import random
import re
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import charts, results
from bench.machine import heading
from bench.serving import load, prepare, process, workload

CONNECTIONS = (16, 64, 250, 1000)
INFER = "/inference.GRPCInferenceService/ModelInfer"
# Name, protocol as `workload` has it, path, and options of the server.
ENTRANCES = (
    ("HTTP, JSON", "vertex", "/predict", ()),
    ("gRPC, aio", "grpc", INFER, ()),
    ("gRPC, ngh2", "grpc", INFER, ("--grpc-front", "ngh2")),
)
# "Flat": no cell is further from the fewest connections than this.
FLAT = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An entrance at a number of connections, measured once."""

    entrance: str
    connections: int
    round: int
    per_second: float
    cpu_us: float  # processor time of the server for each request
    memory_mib: float  # that the server occupied, the most that was seen
    lost: int  # requests that were refused, or had no answer


class Entrance:
    """A server of one entrance, stopped in its tracks unless it is measured."""

    def __init__(self, index: int, work: workload.Workload, folder: Path) -> None:
        self.name, self._dialect, path, options = ENTRANCES[index]
        self._work, port = work, process.free_port()
        self._url = f"http://127.0.0.1:{port}{path}"
        self._bodies = work.write(folder / f"{index}.bodies", self._dialect)
        bundle = prepare.BUNDLES["text_classifier"]
        command = [prepare.PYTHON, "-m", "server", "--host", "127.0.0.1", "--bundle", str(bundle)]
        command += ["--processes", "1"]  # memory is looked at of one
        own, other = "HLOSERVE_GRPC_PORT", "AIP_HTTP_PORT"
        if self._dialect not in workload.GRPC:
            own, other = other, own
        env = {own: str(port), other: "0"}
        log = folder / f"{index}.log"
        self._processes = process.Processes([*command, *options], env, prepare.ROOT, log)

    def wait(self) -> None:
        first = self._work.body(0, self._dialect)
        process.wait_until(
            lambda: workload.answers_at_all(self._url, self._dialect, *first), self._processes, 300
        )
        self._processes.pause()

    def measure(self, connections: int, seconds: float, round_: int) -> Row:
        self._processes.resume()
        over, seen = threading.Event(), [self._memory_mib()]

        def watch() -> None:
            while not over.wait(0.1):
                seen.append(self._memory_mib())

        watching = threading.Thread(target=watch)
        try:
            self._work.check(self._url, self._dialect)
            watching.start()
            before = self._processes.cpu_seconds()
            sent = self._load(connections, seconds)
            cpu = self._processes.cpu_seconds() - before
            over.set()
            watching.join()
            self._work.check(self._url, self._dialect)
        finally:
            over.set()
            self._processes.pause()
        return Row(
            self.name,
            connections,
            round_,
            sent.per_second,
            1e6 * cpu / max(1, sent.requests),
            max(seen),
            sent.refused + sent.broken,
        )

    def stop(self) -> None:
        self._processes.stop()

    def _load(self, connections: int, seconds: float) -> load.Load:
        if self._dialect in workload.GRPC:
            return load.call(self._url, self._bodies, connections, seconds, 1)
        return load.send(self._url, self._bodies, connections, seconds)

    def _memory_mib(self) -> float:
        text = Path(f"/proc/{self._processes.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving.growth", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS, metavar="N")
    parser.add_argument("--save", action="store_true", help="write docs/results/growth-DATE-*.*")
    arguments = parser.parse_args()
    print(heading(), flush=True)
    if not prepare.BUNDLES["text_classifier"].exists():
        prepare.bundles()
    work = workload.texts(prepare.params())
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        entrances = [Entrance(index, work, Path(folder)) for index in range(len(ENTRANCES))]
        for entrance in entrances:
            stack.callback(entrance.stop)
        for entrance in entrances:
            entrance.wait()
        rows = [
            entrance.measure(connections, arguments.seconds, round_)
            for round_ in range(arguments.rounds)
            # Memory that was freed stays the process's, so it can be seen only as it grows.
            for connections in sorted(arguments.connections)
            for entrance in random.sample(entrances, len(entrances))
        ]
    summary = summarize(rows)
    print(table(summary))
    if arguments.save:
        rows_ = [dataclasses.asdict(row) for row in rows]
        results.save("growth", {"summary": summary, "rows": rows_}, chart)
    return 0


def summarize(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the medians of each cell, and what they are to those of the fewest connections."""
    found = []
    for name, *_ in ENTRANCES:
        counts = sorted({row.connections for row in rows if row.entrance == name})
        for connections in counts:
            own = [r for r in rows if (r.entrance, r.connections) == (name, connections)]
            few = [r for r in rows if (r.entrance, r.connections) == (name, counts[0])]
            pairs = [(a, b) for a in few for b in own if a.round == b.round]
            grown = [b.memory_mib - a.memory_mib for a, b in pairs if a.round == 0]
            more = connections - counts[0]
            found.append(
                {
                    "entrance": name,
                    "connections": connections,
                    "per_second": statistics.median(row.per_second for row in own),
                    "to_the_fewest": statistics.median(
                        b.per_second / a.per_second for a, b in pairs
                    ),
                    "cpu_us": statistics.median(row.cpu_us for row in own),
                    "memory_mib": max(row.memory_mib for row in own),
                    "kib_a_connection": 1024 * grown[0] / more if more else 0.0,
                    "lost": sum(row.lost for row in own),
                }
            )
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """Return the medians as lines of text."""
    lines = [
        f"{'entrance':<12} {'conns':>5} {'req/s':>8} {'x':>5} {'CPU us':>7} {'MiB':>6} {'KiB/conn':>9} {'lost':>5}"
    ]
    lines += [
        f"{s['entrance']:<12} {s['connections']:5d} {s['per_second']:8,.0f} {s['to_the_fewest']:5.2f} "
        f"{s['cpu_us']:7.0f} {s['memory_mib']:6.0f} {s['kib_a_connection']:9.1f} {s['lost']:5d}"
        for s in summary
    ]
    flat = all(abs(s["to_the_fewest"] - 1) <= FLAT for s in summary)
    return "\n".join([*lines, f"flat within {FLAT:.0%}: {'yes' if flat else 'no'}"])


def chart(found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw requests a second, processor time and memory by the number of connections.

    Args:
      found: `machine` and `summary`, as they are saved.
      path: of the SVG.
      day: of the measurement.
    """
    plt = charts.drawing()
    panels = (
        ("per_second", "requests/s"),
        ("cpu_us", "processor time of a request, µs"),
        ("memory_mib", "memory of the server, MiB"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 4.4), layout="constrained")
    colors = dict(zip((e[0] for e in ENTRANCES), ("#7b8ea3", "#d9a36b", charts.OURS), strict=True))
    for axis, (key, label) in zip(axes, panels, strict=True):
        for name, color in colors.items():
            own = [s for s in found["summary"] if s["entrance"] == name]
            x, y = [s["connections"] for s in own], [s[key] for s in own]
            axis.plot(x, y, marker="o", color=color, label=name)
        axis.set_xscale("log")
        axis.set_xticks(x, map(str, x))
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("connections, each with one request under way")
        axis.set_title(label, fontsize="medium", loc="left")
    axes[0].legend(frameon=False, fontsize="small")
    notes = [
        f"measured {day} on {charts.on(found['machine'])}",
        "text classifier, one process",
        "median of rounds; load and server share the cores",
    ]
    charts.describe_figure(figure, "What connections cost", charts.wrapped(notes))
    charts.save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
