"""`python -m bench.raw`: sentences as texts, beside the same as ids, and beside infinity-emb.

    python -m bench.raw [--quick] [--without-peer] [--save]

Takes about seven minutes on two cores once all is prepared; the first run makes the bundles and the
peer's environment, which takes minutes more and a package index. Rounds, cells and checks are those of `bench.serving`: servers run all the time and are stopped in
their tracks unless it is their turn, and every answer is compared with the model's own.
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
from bench.raw import prepare, workload
from bench.serving import load, measure, process, report
from bench.serving.cells import Server
from bench.serving.prepare import PYTHON
from bench.serving.workload import WrongAnswer

DIALECTS = ("vertex", "text", "openai")
TEXT, IDS, OPENAI = "hloserve, texts", "hloserve, ids", "hloserve, OpenAI"
PEER, PEER_ONNX = "infinity-emb", "infinity-emb, ONNX"
# Of these servers: the first divided by the second in requests per second, at least.
GOALS = (
    ("minilm", TEXT, IDS, 16, 0.9),
    ("minilm", TEXT, IDS, 64, 0.9),
    ("minilm", OPENAI, PEER, 16, 1.2),
    ("minilm", OPENAI, PEER, 64, 1.2),
)


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(heading(), flush=True)
    prepare.bundles()
    missing = "not asked for" if arguments.without_peer else prepare.peer()
    peer = not missing
    print("peer:", missing or ", ".join(f"{k} {v}" for k, v in prepare.versions().items()))
    try:
        load.find("wrk")
        rows, encoding = run(arguments, peer=peer)
    except (load.LoadError, process.ServerFailed, WrongAnswer) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary, goals = summarize(rows), reached(rows)
    print(f"\n{report.table(summary)}\n")
    for goal in goals:
        print(
            f"{'reached' if goal['reached'] else 'missed ':<8} {goal['ratio']:5.2f}  {goal['goal']}"
        )
    for model, micros in encoding.items():
        print(f"{model}: its tokenizer takes {micros:.0f} µs for a sentence")
    for row in rows:
        if row.wrong:
            print(f"does not count: {row.server}, {row.connections} connections: {row.wrong}")
    if arguments.save:
        save(
            rows,
            summary,
            goals=goals,
            encode_us=encoding,
            peer=prepare.versions() if peer else missing,
        )
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.raw", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2 seconds a cell")
    parser.add_argument("--rounds", type=int, default=0, help="default: 4")
    parser.add_argument("--seconds", type=float, default=0.0, help="of a cell; default: 3")
    parser.add_argument("--model", choices=("minilm", "reviews"), help="default: both")
    parser.add_argument("--without-peer", action="store_true", help="ours alone")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/raw-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 4)
    arguments.seconds = arguments.seconds or (2.0 if arguments.quick else 3.0)
    return arguments


def servers(*, peer: bool) -> list[Server]:
    """All that is measured."""
    found = []
    bundles = {"minilm": prepare.MINILM, "reviews": prepare.REVIEWS}
    for model, bundle in bundles.items():
        found += [_ours(TEXT, model, bundle, "text"), _ours(IDS, model, bundle, "vertex")]
    if peer:
        found += [_ours(OPENAI, "minilm", prepare.MINILM, "openai")]
        found += [_infinity(PEER, "torch"), _infinity(PEER_ONNX, "optimum")]
    return found


def _ours(name: str, model: str, bundle: Path, dialect: str) -> Server:
    return Server(
        name=name,
        setting="one process",
        model=model,
        connections=(16, 64),
        # Servers of one bundle compile and check it once; it changes nothing once they are ready.
        command=(
            *(PYTHON, "-m", "server", "--bundle", str(bundle), "--processes", "1"),
            *("--cache-dir", str(prepare.CACHE)),
        ),
        path="/v1/embeddings" if dialect == "openai" else "/predict",
        dialect=dialect,
        env={"AIP_HTTP_PORT": "{port}", "HLOSERVE_GRPC_PORT": "-1"},
    )


def _infinity(name: str, engine: str) -> Server:
    from examples.minilm.model import pretrained

    # Finds the ONNX file of the directory that it is started in, and of no other.
    onnx = engine == "optimum"
    return Server(
        name=name,
        setting=f"{engine} engine, batches of 32",
        model="minilm",
        connections=(16, 64),
        command=(
            *(str(prepare.PEER_PYTHON), "-m", "infinity_emb.cli", "v2"),
            *("--model-id", "." if onnx else str(pretrained()), "--engine", engine),
            *("--device", "cpu", "--no-bettertransformer", "--pooling-method", "mean"),
            *("--batch-size", "32", "--port", "{port}", "--served-model-name", "minilm"),
        ),
        path="/embeddings",
        dialect="openai",
        cwd=prepare.ONNX if onnx else prepare.ROOT,
        env=prepare.OFFLINE,
    )


def run(arguments: argparse.Namespace, *, peer: bool) -> tuple[list[measure.Row], dict[str, float]]:
    chosen = [s for s in servers(peer=peer) if arguments.model in {None, s.model}]
    bundles = {"minilm": prepare.MINILM, "reviews": prepare.REVIEWS}
    works = {s.model: workload.sentences(bundles[s.model]) for s in chosen}
    encoding = {m: workload.encode_us(bundles[m], work.texts) for m, work in works.items()}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = measure.start(chosen, works, Path(folder))
        stack.callback(measure.stop, running)
        return measure.measure(running, arguments.rounds, arguments.seconds, print_row), encoding


def print_row(row: measure.Row) -> None:
    figures = row.wrong or f"{row.per_second:8,.0f}/s, p50 {row.p50_us:8,.0f} µs"
    print(
        f"round {row.round + 1}: {row.model:<8} {row.server:<16} {row.connections:3d}: {figures}"
        f", {row.cpu_us:6,.0f} µs of CPU, load {row.load_1m:.1f}",
        flush=True,
    )


def summarize(rows: list[measure.Row]) -> list[dict[str, object]]:
    """Return each cell's medians, and texts against it."""
    named = [dataclasses.replace(r, server="hloserve") if r.server == TEXT else r for r in rows]
    return report.summarize(named)


def reached(rows: list[measure.Row]) -> list[dict[str, object]]:
    """Check the ratios against what is hoped for."""
    found = []
    for model, ours, other, connections, times in GOALS:
        cells = [
            [
                r
                for r in rows
                if not r.wrong and (r.model, r.server, r.connections) == (model, s, connections)
            ]
            for s in (ours, other)
        ]
        value = report.ratio(*cells, "per_second")
        if value is not None:
            goal = f"{model}, {connections} connections: {ours} at least {times:g} × of {other}"
            found.append({"goal": goal, "ratio": value, "reached": value >= times})
    return found


def save(rows: list[measure.Row], summary: list[dict[str, object]], **more: object) -> None:
    figures = {"summary": summary, **more, "rows": [dataclasses.asdict(row) for row in rows]}
    results.save("raw", figures, functools.partial(report.charts, "raw"))


if __name__ == "__main__":
    sys.exit(main())
