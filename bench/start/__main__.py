"""Start the server, mosec and Triton with the same programs, in turns, until each answers.

    python -m bench.start [--rounds 5] [--model minilm] [--save]

Needs the peers' environments, which the first run makes (`python -m bench.serving` shares them). Each start is timed from
the command to the first prediction with status 200, asked for every 10 ms. What is called cached has its programs in a
cache that an earlier start, which does not count, has filled; the peers have JAX's own. Bare is no server: one process that
imports jax, compiles the programs and runs each once, which no start without a cache can go below. Memory is the largest
resident set that any process has had.
"""

import argparse
import contextlib
import dataclasses
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

from bench import results
from bench.charts import OURS, THEIRS, describe_figure, drawing, on
from bench.charts import save as save_figure
from bench.machine import heading
from bench.serving import prepare
from bench.serving.process import Processes, ServerFailed, free_port
from runtime.bundle import open_bundle
from runtime.records.golden_instances import golden_instances

_TIMEOUT_S = 600.0
_POLL_S = 0.01
PEERS = ("mosec", "triton")
MODELS = ("text_classifier", "minilm", "efficientnet")
# What a start is to take at most, from the other starts of its round.
BOUNDS: dict[str, tuple[str, Callable[[dict[str, dict]], float]]] = {
    "cached": ("mosec", lambda row: row["mosec"]["seconds"]),
    "cached, two processes": ("1.6 x cached", lambda row: 1.6 * row["cached"]["seconds"]),
    "nothing cached, digest required": (
        "1.25 x (compiles and one run of each)",
        lambda row: 1.25 * (row["bare"]["compiles"] + row["bare"]["first runs"]),
    ),
    "nothing cached": (
        "1.25 x (compiles and one run of each) + imports",
        lambda row: (
            1.25 * (row["bare"]["compiles"] + row["bare"]["first runs"]) + row["bare"]["imports"]
        ),
    ),
}
# An image model runs long, so that mosec's warm-up is no measure for it.
BOUND_OF_IMAGES = (
    "2 x (imports and one run of each)",
    lambda row: 2 * (row["bare"]["imports"] + row["bare"]["first runs"]),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """One way to start a server.

    Attributes:
      name: what it is compared as.
      command: with {port}, {bundle}, {cache}, {digest} and {repository}.
      env: beside this process's own environment; the same may be in it.
      fresh: whether its cache is emptied before each start.
      route: of predictions.
      ends: whether it is no server, but a command that ends.
    """

    name: str
    command: tuple[str, ...]
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    fresh: bool = False
    route: str = "/predict"
    ends: bool = False


_OURS = (
    *(sys.executable, "-m", "server", "--bundle", "{bundle}", "--port", "{port}"),
    *("--grpc-port", "-1", "--host", "127.0.0.1", "--predict-route", "/predict"),
)
_ONE, _TWO = ("--processes", "1"), ("--processes", "2")
_DIGEST = ("--require-digest", "{digest}")
_PEER_ENV = {"BENCH_BUNDLE": "{bundle}", "BENCH_CACHE": "{cache}"}


def starts() -> list[Start]:
    """Return all that is measured here."""
    found = [
        Start("cached", (*_OURS, *_ONE, "--cache-dir", "{cache}")),
        Start("cached, two processes", (*_OURS, *_TWO, "--cache-dir", "{cache}")),
        Start("cached, as it starts", (*_OURS, "--cache-dir", "{cache}")),
        Start("nothing cached, digest required", (*_OURS, *_ONE, *_DIGEST), fresh=True),
        Start("nothing cached", (*_OURS, *_ONE), fresh=True),
        Start("nothing cached, as it starts", _OURS, fresh=True),
        Start(
            "mosec",
            (
                *(str(prepare.PEERS_PYTHON), "-m", "bench.start.mosec_programs"),
                *("--port", "{port}", "--timeout", "600000", "--address", "127.0.0.1"),
            ),
            {**_PEER_ENV, "PYTHONPATH": str(prepare.ROOT)},
        ),
    ]
    if prepare.has_triton():
        site = prepare.PEERS / "lib" / f"python{prepare.VERSION}" / "site-packages"
        env = {**prepare.triton_env(), "PYTHONPATH": f"{prepare.ROOT}:{site}"}
        found.append(
            Start(
                "triton",
                prepare.triton_command(Path("{repository}")),
                {**_PEER_ENV, **env},
                route="/v2/models/programs/infer",
            )
        )
    bare = (sys.executable, "-m", "bench.start.programs", "{bundle}")
    return [*found, Start("bare", bare, ends=True)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.start", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, help="default: all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="starts; default: all")
    parser.add_argument(
        "--save", action="store_true", help="write docs/results/start-DATE-pythonVERSION.*"
    )
    arguments = parser.parse_args()
    print(heading(), flush=True)
    prepare.bundles()
    prepare.peers()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in [arguments.model] if arguments.model else MODELS:
            wanted = [s for s in starts() if not arguments.only or s.name in arguments.only]
            try:
                rows += measure(model, wanted, arguments.rounds, Path(folder), print_row)
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
    ours = {"instances": [{k: np.asarray(v).tolist() for k, v in instance.items()}]}
    oip = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT32", "data": [0]}]}
    rows = []
    for i in range(-1, rounds):  # the first fills the caches
        for start in starts:
            if i < 0 and (start.fresh or start.ends):
                continue
            own = start.name if start.name in PEERS else "ours"
            cache = folder / f"{model}-{'fresh' if start.fresh else own}"
            if start.fresh:
                shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir(exist_ok=True)
            body = json.dumps(oip if start.name == "triton" else ours).encode()
            load = os.getloadavg()[0]
            row = once(start, bundle, cache, body, folder)
            if i >= 0:
                rows.append(
                    {"model": model, "start": start.name, "round": i, "load_1m": load, **row}
                )
                report(rows[-1])
    return rows


def once(start: Start, bundle: Path, cache: Path, body: bytes, folder: Path) -> dict[str, float]:
    """Start a server, wait for its first prediction, and end it; or wait for a command's end."""
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    port = free_port()
    values = {
        "port": port,
        "bundle": bundle,
        "cache": cache,
        "digest": f"sha256:{digest}",
        "repository": triton_repository(folder / "triton"),
    }
    command = [word.format(**values) for word in start.command]
    env = {name: text.format(**values) for name, text in start.env.items()}
    begin = time.perf_counter()
    processes = Processes(command, env, prepare.ROOT, folder / "log")
    try:
        while not answers(port, start.route, body):
            if start.ends and processes.ended():
                break
            processes.check()
            if time.perf_counter() - begin > _TIMEOUT_S:
                raise ServerFailed(f"{start.name}: no answer after {_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - begin
        stages = json.loads((folder / "log").read_bytes()) if start.ends else {}
        return {
            "seconds": seconds,
            "cpu_seconds": processes.cpu_seconds(),
            "peak_mib": peak_mib(processes.pid),
            **stages,
        }
    finally:
        processes.stop()


def triton_repository(folder: Path) -> Path:
    """Lay out a model repository."""
    version = folder / "programs" / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
    (folder / "programs" / "config.pbtxt").write_text("""\
backend: "python"
max_batch_size: 64
input [{ name: "x" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "predictions" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
""")
    return folder


def answers(port: int, route: str, body: bytes) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{route}", body, {"content-type": "application/json"}
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


def print_row(row: dict) -> None:
    print(
        f"round {row['round'] + 1}: {row['model']:<15} {row['start']:<32} {row['seconds']:6.2f} s, "
        f"{row['cpu_seconds']:6.2f} CPU s, {row['peak_mib']:5.0f} MiB, load {row['load_1m']:.1f}",
        flush=True,
    )


def summarize(rows: Sequence[dict]) -> list[dict]:
    """Return medians over the rounds, also of the ratios to mosec's and to a start's bound."""
    rounds: dict[tuple[str, int], dict[str, dict]] = {}
    for row in rows:
        rounds.setdefault((row["model"], row["round"]), {})[row["start"]] = row
    found = []
    for model, start in dict.fromkeys((row["model"], row["start"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["start"]) == (model, start)]
        together = [rounds[model, row["round"]] for row in mine]
        bound, bound_of = BOUNDS.get(start, ("", None))
        if model == "efficientnet" and start == "cached":
            bound, bound_of = BOUND_OF_IMAGES
        found.append(
            {
                "model": model,
                "start": start,
                **{
                    name: statistics.median(row[name] for row in mine)
                    for name in ("seconds", "cpu_seconds", "peak_mib")
                },
                "lowest": min(row["seconds"] for row in mine),
                "highest": max(row["seconds"] for row in mine),
                "of_mosec": ratio(start, together, lambda row: row["mosec"]["seconds"]),
                "bound": bound,
                "of_bound": ratio(start, together, bound_of),
            }
        )
    return found


def ratio(
    start: str, rounds: Sequence[dict[str, dict]], bound: Callable[[dict[str, dict]], float] | None
) -> float | None:
    """Return the median of a start's seconds over what the same round allows; None without."""
    if bound is None:
        return None
    try:
        return statistics.median(row[start]["seconds"] / bound(row) for row in rounds)
    except KeyError:
        return None  # what it is compared with was left out


def table(found: Sequence[dict]) -> str:
    lines = [
        "| model | start | seconds | CPU seconds | peak MiB | of mosec's | of its bound | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        ratios = ["" if row[k] is None else f"{row[k]:.2f}" for k in ("of_mosec", "of_bound")]
        lines.append(
            f"| {row['model']} | {row['start']} | {row['seconds']:.2f} ({row['lowest']:.2f} to "
            f"{row['highest']:.2f}) | {row['cpu_seconds']:.2f} | {row['peak_mib']:.0f} | "
            f"{' | '.join(ratios)} | {row['bound']} |"
        )
    return "\n".join(lines)


def save(rows: Sequence[dict], found: Sequence[dict]) -> None:
    figures = {"peers": prepare.versions(), "summary": found, "rows": rows}
    results.save("start", figures, chart)


def chart(saved: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw the seconds of each start, a panel for each model."""
    found = saved["summary"]
    models = list(dict.fromkeys(row["model"] for row in found))
    figure, axes = drawing().subplots(
        1, len(models), figsize=(6.5 * len(models), 3.8), layout="constrained", squeeze=False
    )
    for axis, model in zip(axes[0], models, strict=True):
        bars = [row for row in reversed(found) if row["model"] == model]
        others = (*PEERS, "bare")
        colors = [THEIRS if row["start"] in others else OURS for row in bars]
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
            "cached: compiled programs are loaded from --cache-dir · mosec, triton: the same programs, from JAX's cache",
            "digest required: the bundle is not loaded in a separate process first · bare: no server, each program is compiled and runs once",
        ],
    )
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
