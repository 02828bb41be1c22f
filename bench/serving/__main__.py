"""Load the server and its peers in turn, and compare.

    python -m bench.serving [--quick | --defaults] [--only NAME ...] [--against DIR]

Needs wrk and h2load. Exports the bundles and makes the peers' environment the first time (five minutes).
Servers run all the time but are stopped in their tracks (SIGSTOP) unless it is their turn.
Every answer is compared with the model's own, before and after each interval; a cell with a
wrong answer, a refused request or a broken connection does not count.
"""

import argparse
import contextlib
import dataclasses
import functools
import signal
import sys
import tempfile
from pathlib import Path

from bench import results
from bench.machine import heading
from bench.serving import cells, load, measure, prepare, process, report, workload

IDLE_SECONDS = 10.0


def main() -> int:
    arguments = parse()
    # A plain SIGTERM would leave the servers behind, and stopped at that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(heading())
    print("peers:", ", ".join(f"{k} {v}" for k, v in prepare.versions().items()), flush=True)
    try:
        load.find("wrk")
        load.find("h2load")
        rows, idle = run(arguments)
    except (load.LoadError, process.ServerFailed, workload.WrongAnswer) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary, goals = report.summarize(rows), report.goals(rows)
    print(f"\n{report.table(summary)}\n")
    for goal in goals:
        print(
            f"{'reached' if goal['reached'] else 'missed ':<8} {goal['ratio']:5.2f}  {goal['goal']}"
        )
    for row in rows:
        if row.wrong:
            print(f"does not count: {row.server}, {row.connections} connections: {row.wrong}")
    for name, percent in idle.items():
        print(f"idle: {name} uses {percent:.2f} % of a core")
    if arguments.save:
        name = "defaults" if arguments.defaults else "serving"
        save(name, rows, summary, goals=goals, idle_percent=idle)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 seconds a cell")
    parser.add_argument(
        "--defaults",
        action="store_true",
        help="what decides the default of --processes: as it starts, one and two, and the fastest peers; "
        "4 rounds, 12 minutes at most",
    )
    parser.add_argument("--rounds", type=int, default=0, help="default: 6")
    parser.add_argument("--seconds", type=float, default=0.0, help="of a cell; default: 4")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="servers; default: all")
    parser.add_argument("--model", choices=("text_classifier", "minilm"), help="default: both")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout of ours")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/serving-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (
        2 if arguments.quick else 4 if arguments.defaults else 6
    )
    arguments.seconds = arguments.seconds or (2.0 if arguments.quick else 4.0)
    return arguments


def run(arguments: argparse.Namespace) -> tuple[list[measure.Row], dict[str, float]]:
    prepare.bundles()
    prepare.peers()
    servers = [
        server
        for server in (
            cells.deciding()
            if arguments.defaults
            else cells.servers(arguments.against and arguments.against.resolve())
        )
        if (not arguments.only or server.name in arguments.only)
        and arguments.model in {None, server.model}
    ]
    if not prepare.has_triton():
        print("triton is left out: it needs Python 3.12 with a shared libpython")
    works = {
        "text_classifier": workload.texts(prepare.params()),
        "minilm": workload.sentences(prepare.BUNDLES["minilm"]),
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = measure.start(servers, works, Path(folder))
        stack.callback(measure.stop, running)
        rows = measure.measure(running, arguments.rounds, arguments.seconds, print_row)
        ours = [one for one in running if one.server.name == "hloserve"]
        return rows, {one.server.model: one.idle(IDLE_SECONDS) for one in ours}


def print_row(row: measure.Row) -> None:
    figures = row.wrong or f"{row.per_second:8,.0f}/s, p50 {row.p50_us:8,.0f} µs"
    print(
        f"round {row.round + 1}: {row.model:<15} {row.server:<14} {row.connections:3d}: {figures}"
        f", load {row.load_1m:.1f}",
        flush=True,
    )


def save(name, rows, summary, **more) -> None:
    figures = {
        "peers": prepare.versions(),
        "summary": summary,
        **more,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    results.save(name, figures, functools.partial(report.charts, name))


if __name__ == "__main__":
    sys.exit(main())
