"""What a request's time is spent on, by py-spy's samples of a server under load.

    python -m bench.serving.breakdown [--connections N] [--seconds S] [--against DIR]

One process of ours serves the classifier. Its time for a request is taken without the profiler;
the samples say how it is divided. With --against another checkout is profiled in the same way, in
turn. Attaching to a process may need root.
"""

import argparse
import collections
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.machine import heading
from bench.serving import cells, load, measure, prepare, workload

PY_SPY = prepare.PEERS / "bin" / "py-spy"
RATE = 100  # a sample stops the server for a millisecond
ROUNDS = 3

# What the innermost function of ours, or the file it is in, does for a request. What a library does is
# its caller's.
PIECES: Mapping[str, str] = {
    "Compiled.__call__": "the program",
    "ExecuteReplicated.__call__": "the program",
    "Connection._write": "writing to the socket",
    "Runner.run": "waiting for sockets and reading them",
    **dict.fromkeys(
        (
            *("connection", "parser", "pipeline", "flow_control", "message", "frontend", "router"),
            *("memory_budget", "body", "request_options"),
        ),
        "HTTP",
    ),
    **dict.fromkeys(("vertex", "instances", "tensors", "strict_json", "inputs"), "JSON to arrays"),
    **dict.fromkeys(("predictions", "response", "orjson"), "arrays to JSON"),
    **dict.fromkeys(
        (
            "service",
            "pending_request",
            "scheduler",
            "launch_policy",
            "batch_recorder",
            "queue",
            "buckets",
        ),
        "queue, batches, deadlines",
    ),
    **dict.fromkeys(
        ("executor", "staging", "model", "program", "_base", "base_events", "events"),
        "to the device and back",
    ),
    **dict.fromkeys(("routes", "inference", "metrics", "status"), "routes and counts"),
}
OTHER = "anything else"
# Threads that have nothing to do, where py-spy takes them for busy.
_WAITING = ("_worker", "DeviceExecutor._next", "DeviceExecutor._loop", "Condition.wait")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving.breakdown", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of profiling, each round")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout of ours")
    arguments = parser.parse_args()
    print(heading(), flush=True)
    prepare.bundles()
    prepare.peers()
    work = {"text_classifier": workload.texts(prepare.params())}
    with tempfile.TemporaryDirectory() as folder:
        running = measure.start(_servers(arguments), work, Path(folder))
        try:
            for one in running:
                spent, samples = _profiled(one, arguments, Path(folder) / "samples")
                print(
                    f"\n{one.server.name}: {spent:.0f} µs a request, {sum(samples.values())} samples\n"
                )
                print(table(samples, spent))
        except (load.LoadError, workload.WrongAnswer, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            measure.stop(running)
    return 0


def _servers(arguments: argparse.Namespace) -> list[cells.Server]:
    bundle = prepare.BUNDLES["text_classifier"]
    counts = (arguments.connections,)
    found = [cells.hloserve("hloserve", "text_classifier", bundle, counts)]
    if arguments.against is not None:
        there = arguments.against.resolve()
        name = f"hloserve in {there.name}"
        found.append(cells.hloserve(name, "text_classifier", bundle, counts, cwd=there))
    return found


def _profiled(
    one: measure.Running, arguments: argparse.Namespace, kept: Path
) -> tuple[float, "collections.Counter[str]"]:
    """Return the processor time of a request, in microseconds, and the samples of each piece."""
    times, samples = [], collections.Counter()
    for _ in range(ROUNDS):
        row = one.measure(arguments.connections, 3.0)
        if row["wrong"]:
            raise workload.WrongAnswer(row["wrong"])
        times.append(row["cpu_us"])
        with one.under_load(arguments.connections, arguments.seconds + 1) as pid:
            command = [PY_SPY, "record", "--format=raw", f"--rate={RATE}", f"--pid={pid}"]
            command += [f"--duration={arguments.seconds:.0f}", f"--output={kept}"]
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        samples.update(pieces(kept.read_text().splitlines()))
    return sorted(times)[ROUNDS // 2], samples


def pieces(lines: Iterable[str]) -> "collections.Counter[str]":
    """Count the samples of busy threads, in py-spy's raw format, by what was done."""
    found: collections.Counter[str] = collections.Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not frames[-1].startswith(_WAITING):
            found[_piece(frames)] += int(count)
    return found


def _piece(frames: list[str]) -> str:
    """Name what a stack does, by the innermost of its frames that says so."""
    for frame in reversed(frames):
        function, _, place = frame.partition(" (")
        file = Path(place.partition(":")[0]).stem
        piece = PIECES.get(function) or PIECES.get(file)
        if piece:
            return piece
    return OTHER


def table(samples: Mapping[str, int], spent_us: float) -> str:
    whole = sum(samples.values())
    lines = ["| piece | share | µs |", "|---|---|---|"]
    for piece, count in sorted(samples.items(), key=lambda item: -item[1]):
        lines.append(f"| {piece} | {count / whole:.0%} | {count / whole * spent_us:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
