"""Start the server and mosec with the same programs, in turns, until each answers.

    python -m bench.start [--rounds 5] [--model minilm] [--save]

Needs mosec's environment, which the first run makes (`python -m bench.serving` shares it). Each start is timed from
the command to the first prediction with status 200, asked for every 10 ms. What is called cached has its programs in a
cache that an earlier start, which does not count, has filled; mosec has JAX's own. Memory is the largest resident set that
any of the server's processes has had.
"""

import argparse
import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.charts import OURS, THEIRS, describe_figure, drawing, on
from bench.charts import save as save_figure
from bench.machine import describe, heading
from bench.serving import prepare
from bench.serving.process import Processes, ServerFailed, free_port
from runtime.bundle import open_bundle
from runtime.records.golden_instances import golden_instances

RESULTS = Path(__file__).parents[2] / "docs" / "results"
_TIMEOUT_S = 600.0
_POLL_S = 0.01
# Ours against mosec's, in the same round.
GOALS = {"cached": 1.0}


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """One way to start a server.

    Attributes:
      name: what it is compared as.
      command: with {port}, {bundle}, {cache} and {digest}.
      env: beside this process's own environment; the same may be in it.
      fresh: whether its cache is emptied before each start.
    """

    name: str
    command: tuple[str, ...]
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    fresh: bool = False


_OURS = (
    *(sys.executable, "-m", "server", "--bundle", "{bundle}", "--port", "{port}"),
    *("--grpc-port", "-1", "--host", "127.0.0.1", "--predict-route", "/predict"),
)
_DIGEST = ("--require-digest", "{digest}")
STARTS = (
    Start("cached", (*_OURS, "--cache-dir", "{cache}")),
    Start("cached, two processes", (*_OURS, "--cache-dir", "{cache}", "--processes", "2")),
    Start("nothing cached, digest required", (*_OURS, *_DIGEST), fresh=True),
    Start("nothing cached", _OURS, fresh=True),
    Start(
        "mosec",
        (
            *(str(prepare.PEERS_PYTHON), "-m", "bench.start.mosec_programs"),
            *("--port", "{port}", "--timeout", "600000", "--address", "127.0.0.1"),
        ),
        {"BENCH_BUNDLE": "{bundle}", "BENCH_CACHE": "{cache}", "PYTHONPATH": str(prepare.ROOT)},
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.start", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=("text_classifier", "minilm"), help="default: both")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[s.name for s in STARTS])
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/start-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    print(heading(), flush=True)
    prepare.bundles()
    prepare.peers()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in [arguments.model] if arguments.model else ["text_classifier", "minilm"]:
            starts = [s for s in STARTS if not arguments.only or s.name in arguments.only]
            try:
                rows += measure(model, starts, arguments.rounds, Path(folder), tell)
            except ServerFailed as error:
                print(f"error: {error}", file=sys.stderr)
                return 1
    found = summarize(rows)
    print(f"\n{table(found)}")
    if arguments.save:
        save(rows, found)
    return 0


def measure(
    model: str,
    starts: Sequence[Start],
    rounds: int,
    folder: Path,
    report: Callable[[dict], None],
) -> list[dict]:
    """Start each in turn, so that what else the machine does meets all of them alike."""
    bundle = prepare.BUNDLES[model]
    instance = next(iter(golden_instances(open_bundle(bundle))))
    body = json.dumps({"instances": [{k: np.asarray(v).tolist() for k, v in instance.items()}]})
    rows = []
    for i in range(-1, rounds):  # the first fills the caches
        for start in starts:
            if i < 0 and start.fresh:
                continue
            cache = folder / f"{model}-{'mosec' if start.name == 'mosec' else 'ours'}"
            if start.fresh:
                cache = folder / "fresh"
                shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir(exist_ok=True)
            row = {
                "model": model,
                "start": start.name,
                "round": i,
                "load_1m": os.getloadavg()[0],
                **once(start, bundle, cache, body.encode(), folder / "log"),
            }
            if i >= 0:
                rows.append(row)
                report(row)
    return rows


def once(start: Start, bundle: Path, cache: Path, body: bytes, log: Path) -> dict[str, float]:
    """Start a server, wait for its first prediction, and end it."""
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    port = free_port()
    values = {"port": port, "bundle": bundle, "cache": cache, "digest": f"sha256:{digest}"}
    command = [word.format(**values) for word in start.command]
    env = {name: text.format(**values) for name, text in start.env.items()}
    begin = time.perf_counter()
    processes = Processes(command, env, prepare.ROOT, log)
    try:
        while not answers(port, body):
            processes.check()
            if time.perf_counter() - begin > _TIMEOUT_S:
                raise ServerFailed(f"{start.name}: no answer after {_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "cpu_seconds": processes.cpu_seconds(),
            "peak_mib": peak_mib(processes.pid),
        }
    finally:
        processes.stop()


def answers(port: int, body: bytes) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 (our own server)
            return response.status == 200
    except OSError:
        return False


def peak_mib(session: int) -> float:
    """Return the largest resident set that any process of a session has had."""
    peaks = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(status.parent.name)) == session:
                text = status.read_text()
                if "VmHWM:" in text:
                    peaks.append(int(text.split("VmHWM:")[1].split()[0]) / 1024)
    return max(peaks)


def tell(row: dict) -> None:
    print(
        f"round {row['round'] + 1}: {row['model']:<15} {row['start']:<32} {row['seconds']:6.2f} s, "
        f"{row['cpu_seconds']:6.2f} CPU s, {row['peak_mib']:5.0f} MiB, load {row['load_1m']:.1f}",
        flush=True,
    )


def summarize(rows: Sequence[dict]) -> list[dict]:
    """Return medians, and the median of each round's ratio to mosec's."""
    found = []
    for model, start in dict.fromkeys((row["model"], row["start"]) for row in rows):
        mine = {r["round"]: r for r in rows if (r["model"], r["start"]) == (model, start)}
        theirs = {r["round"]: r for r in rows if (r["model"], r["start"]) == (model, "mosec")}
        ratios = [mine[i]["seconds"] / theirs[i]["seconds"] for i in mine if i in theirs]
        found.append(
            {
                "model": model,
                "start": start,
                **{
                    name: statistics.median(row[name] for row in mine.values())
                    for name in ("seconds", "cpu_seconds", "peak_mib")
                },
                "lowest": min(row["seconds"] for row in mine.values()),
                "highest": max(row["seconds"] for row in mine.values()),
                "of_mosec": statistics.median(ratios) if ratios else None,
            }
        )
    return found


def table(found: Sequence[dict]) -> str:
    lines = [
        "| model | start | seconds | CPU seconds | peak MiB | of mosec's |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        ratio = "" if row["of_mosec"] is None else f"{row['of_mosec']:.2f}"
        lines.append(
            f"| {row['model']} | {row['start']} | {row['seconds']:.2f} ({row['lowest']:.2f} to "
            f"{row['highest']:.2f}) | {row['cpu_seconds']:.2f} | {row['peak_mib']:.0f} | {ratio} |"
        )
    return "\n".join(lines)


def save(rows: Sequence[dict], found: Sequence[dict]) -> None:
    RESULTS.mkdir(exist_ok=True)
    day = dt.datetime.now(dt.UTC).date().isoformat()
    path = RESULTS / f"start-{day}-python{prepare.VERSION}.json"
    saved = {"machine": describe(), "peers": prepare.versions(), "summary": found, "rows": rows}
    path.write_text(json.dumps(saved, indent=1) + "\n")
    chart(saved, path.with_suffix(".svg"), day=day)
    print(f"\nwrote {path} and its chart")


def chart(saved: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw the seconds of each start, a panel for each model."""
    found = saved["summary"]
    models = list(dict.fromkeys(row["model"] for row in found))
    figure, axes = drawing().subplots(
        1, len(models), figsize=(6.5 * len(models), 3.8), layout="constrained", squeeze=False
    )
    for axis, model in zip(axes[0], models, strict=True):
        bars = [row for row in reversed(found) if row["model"] == model]
        colors = [THEIRS if row["start"] == "mosec" else OURS for row in bars]
        drawn = axis.barh(
            [row["start"] for row in bars], [r["seconds"] for r in bars], color=colors
        )
        axis.bar_label(drawn, fmt="%.1f s", padding=3)
        axis.set(title=model, xlabel="seconds")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
    describe_figure(
        figure,
        "Seconds from the start of a server to its first answer",
        [
            f"{day}, {on(saved['machine'])}. Bars are medians.",
            "cached: compiled programs are loaded from --cache-dir · mosec: the same programs",
            "digest required: the bundle is not loaded in a separate process first",
        ],
    )
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
