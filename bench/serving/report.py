"""Rows to medians, ratios, a table, and a chart."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.charts import OURS, THEIRS, describe_figure, drawing, on, save, wrapped
from bench.serving.cells import GOALS, Goal
from bench.serving.measure import Row

# Servers whose processes differ from cell to cell.
_SETTINGS = ("hloserve", "mosec")
Cell = tuple[str, str, int]  # model, server, connections
HEADER = (
    *("model", "connections", "server", "requests/s", "lowest to highest"),
    *("p50", "p99", "CPU a request", "hloserve is"),
)


def summarize(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return each cell's medians over the rounds that count, and ours against it."""
    cells = _by_cell(rows)
    summary = []
    for (model, server, connections), good in cells.items():
        ours = cells.get((model, "hloserve", connections), [])
        speeds = [row.per_second for row in good]
        summary.append(
            {
                "model": model,
                "connections": connections,
                "server": server,
                "setting": good[0].setting,
                "rounds": len(good),
                "per_second": statistics.median(speeds),
                "lowest": min(speeds),
                "highest": max(speeds),
                "p50_us": statistics.median(row.p50_us for row in good),
                "p99_us": statistics.median(row.p99_us for row in good),
                "cpu_us": statistics.median(row.cpu_us for row in good),
                "ours_by_theirs": ratio(ours, good, "per_second"),
            }
        )
    return sorted(summary, key=lambda s: (s["model"], s["connections"], -s["per_second"]))


def ratio(ours: Sequence[Row], theirs: Sequence[Row], figure: str) -> float | None:
    """Return the median of the ratios in each round; None where no round has both."""
    other = {row.round: getattr(row, figure) for row in theirs}
    found = [getattr(row, figure) / other[row.round] for row in ours if other.get(row.round)]
    return statistics.median(found) if found else None


def goals(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Check the ratios against what is hoped for."""
    cells = _by_cell(rows)
    found = []
    for goal in GOALS:
        ours = cells.get((goal.model, goal.ours, goal.connections), [])
        # The bare programs have no connections: theirs are the same figure in every cell.
        other = next(
            (
                cells[c]
                for n in (goal.connections, 0)
                if (c := (goal.model, goal.other, n)) in cells
            ),
            [],
        )
        value = ratio(ours, other, goal.figure)
        if value is not None:
            reached = value <= goal.times if goal.figure == "p50_us" else value >= goal.times
            found.append({"goal": say(goal), "ratio": value, "reached": reached})
    return found


def say(goal: Goal) -> str:
    what, bound = ("p50", "at most") if goal.figure == "p50_us" else ("throughput", "at least")
    whose = "" if goal.ours == "hloserve" else f" of {goal.ours}"
    return (
        f"{goal.model}, {goal.connections} connections: "
        f"{what}{whose} {bound} {goal.times:g} × that of {goal.other}"
    )


def _by_cell(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        if not row.wrong:
            cells.setdefault((row.model, row.server, row.connections), []).append(row)
    return cells


def table(summary: Sequence[dict[str, Any]]) -> str:
    """Write the summary as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for s in summary:
        times = s["ours_by_theirs"]
        bare = s["connections"] == 0
        lines.append(
            (
                s["model"],
                "none" if bare else str(s["connections"]),
                s["server"],
                f"{s['per_second']:,.0f}",
                f"{s['lowest']:,.0f} to {s['highest']:,.0f}",
                f"{s['p50_us']:,.0f} µs",
                "" if bare else f"{s['p99_us']:,.0f} µs",
                "" if bare else f"{s['cpu_us']:,.0f} µs",
                "" if times is None or s["server"] == "hloserve" else f"{times:.2f} ×",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# What the names of bars mean, for readers who have not seen the servers' settings.
EXPLAINED = {
    "hloserve": "hloserve: as it starts by itself",
    "hloserve one process": "hloserve, --processes 1",
    "mosec": "mosec: front in Rust, two workers at 64 connections",
    "litserve": "LitServe: FastAPI in front of a worker",
    "article": "article: Flask, gunicorn with 4 workers, jit on request",
    "triton": "Triton: Python backend that calls JAX",
    "hloserve grpc": "grpc: the Open Inference Protocol, one call a request",
    "hloserve grpc two processes": "grpc, two processes",
    "hloserve two processes": "hloserve, --processes 2",
    "hloserve grpc ngh2": "grpc ngh2: the same calls, --grpc-front ngh2",
    "hloserve stream ngh2": "stream ngh2: the same stream, --grpc-front ngh2",
    "hloserve stream": "stream: the same calls over one gRPC stream",
    "hloserve oip": "oip: the Open Inference Protocol in JSON",
    "hloserve binary": "binary: the same with binary tensors",
    "plain grpc.aio": "plain grpc.aio: as its documentation has it, without batching",
}


def chart(found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw the classifier's throughput by server, a panel for each number of connections.

    Args:
      found: `machine` and `summary`, as they are saved.
      path: of the SVG.
      day: of the measurement, such as 2026-11-28.
    """
    chosen = [s for s in found["summary"] if s["model"] == "text_classifier" and s["connections"]]
    names = dict.fromkeys(s["server"] for s in chosen)
    figure = _panels(chosen, ["text_classifier"], {name: name for name in names})
    describe_figure(
        figure,
        "Requests per second of a text classifier, one row of 128 tokens each",
        [_where(found, day, chosen), *wrapped([EXPLAINED[n] for n in names if n in EXPLAINED])],
    )
    save(figure, path)


def overview_chart(found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw what matters first: the latency of a lone client, and the throughput with many."""
    names = {
        "hloserve": "hloserve",
        "mosec": "mosec",
        "article": "Flask, jit on request",
        "litserve": "LitServe",
    }
    panels = (
        (1, "p50_us", "Median latency of a lone client", "µs, less is better"),
        (64, "per_second", "Throughput with 64 connections", "requests per second, more is better"),
    )
    figure, axes = drawing().subplots(1, 2, figsize=(11, 3), layout="constrained")
    drawn_cells = []
    for axis, (count, figure_name, title, unit) in zip(axes, panels, strict=True):
        cells = {
            s["server"]: s
            for s in found["summary"]
            if (s["model"], s["connections"]) == ("text_classifier", count)
        }
        shown = [cells[name] for name in reversed(names)]
        drawn_cells += shown
        drawn = axis.barh(
            [names[s["server"]] for s in shown],
            [s[figure_name] for s in shown],
            color=[OURS if s["server"] == "hloserve" else THEIRS for s in shown],
        )
        axis.bar_label(drawn, labels=[f"{s[figure_name]:,.0f}" for s in shown], padding=4)
        axis.set(title=title, xlabel=unit)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    describe_figure(
        figure,
        "A text classifier over HTTP, one row of 128 tokens a request",
        [
            f"{day}, {on(found['machine'])}, load generator on the same cores.",
            f"Medians of {max(s['rounds'] for s in drawn_cells)} rounds, each server at its best setting.",
            "With 64 connections: "
            + "; ".join(f"{s['server']} {s['setting']}" for s in shown if s["server"] in _SETTINGS),
        ],
    )
    save(figure, path)


def settings_chart(found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw the throughput by processes and threads, a row of panels for each model."""
    chosen = [s for s in found["summary"] if s["connections"]]
    names = {s["server"]: s["setting"].partition(": ")[2] for s in chosen}
    figure = _panels(chosen, ["text_classifier", "minilm"], names)
    describe_figure(
        figure,
        "Requests per second of hloserve by processes × threads of each",
        [
            _where(found, day, chosen),
            "Above: a text classifier, 128 tokens a request. Below: MiniLM, a sentence a request.",
            "Threads: those that XLA computes with. 1 × 2 is what a server on 2 cores does by itself.",
        ],
    )
    save(figure, path)


def raw_chart(found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw the throughput of sentences by server, a row of panels for each model."""
    chosen = found["summary"]
    models = sorted({s["model"] for s in chosen})
    names = {name: _RAW.get(name, name) for name in dict.fromkeys(s["server"] for s in chosen)}
    encoding = ", ".join(f"{model} {us:.0f} µs" for model, us in found["encode_us"].items())
    figure = _panels(chosen, models, names)
    describe_figure(
        figure,
        "Requests per second of sentences, one a request",
        [
            _where(found, day, chosen),
            f"From above: {', '.join(models)}. A sentence takes the tokenizer by itself: {encoding}.",
        ],
    )
    save(figure, path)


# Of bench.raw, whose texts are what the others are compared with.
_RAW = {
    "hloserve": "texts",
    "hloserve, ids": "the same as ids",
    "hloserve, OpenAI": "texts, /v1/embeddings",
}


def _panels(chosen: Sequence[Any], models: Sequence[str], names: Mapping[str, str]) -> Any:
    """Draw a row of panels for each model, and in it one for each number of connections."""
    counts = sorted({s["connections"] for s in chosen})
    figure, axes = drawing().subplots(
        len(models),
        len(counts),
        figsize=(4.4 * len(counts), len(models) * (1.2 + 0.3 * len(names))),
        layout="constrained",
        squeeze=False,
    )
    for row, model in zip(axes, models, strict=True):
        for axis, count in zip(row, counts, strict=True):
            bars = [s for s in reversed(chosen) if (s["model"], s["connections"]) == (model, count)]
            middle = [s["per_second"] for s in bars]
            spread = [
                [m - s["lowest"] for m, s in zip(middle, bars, strict=True)],
                [s["highest"] - m for m, s in zip(middle, bars, strict=True)],
            ]
            ours = [s["server"].startswith("hloserve") for s in bars]
            drawn = axis.barh(
                [names[s["server"]] for s in bars],
                middle,
                xerr=spread,
                color=[OURS if own else THEIRS for own in ours],
                ecolor="#333333",
            )
            axis.bar_label(drawn, labels=[f"{m:,.0f}" for m in middle], padding=4)
            axis.set(title=f"{count} connection{'s' * (count > 1)}", xlabel="requests per second")
            axis.margins(x=0.22)
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def _where(found: Mapping[str, Any], day: str, chosen: Sequence[Any]) -> str:
    rounds = max(s["rounds"] for s in chosen)
    return (
        f"{day}, {on(found['machine'])}, load generator on the same cores. Bars are medians of "
        f"{rounds} rounds, lines the lowest and the highest."
    )


def charts(name: str, found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw what is saved under a name: "serving" in full and in brief, "defaults", "threads" or "raw"."""
    if name in {"threads", "raw"}:
        (settings_chart if name == "threads" else raw_chart)(found, path, day=day)
        return
    chart(found, path, day=day)
    if name == "serving":
        overview_chart(found, path.with_name(f"{path.stem}-overview.svg"), day=day)
