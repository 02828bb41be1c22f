"""Rows to medians, ratios, a table, and a chart."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.serving.cells import GOALS, Goal
from bench.serving.measure import Row

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


def chart(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the classifier's throughput, a panel for each number of connections."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "hloserve"
    from matplotlib import pyplot as plt

    chosen = [s for s in summary if s["model"] == "text_classifier" and s["connections"]]
    counts = sorted({s["connections"] for s in chosen})
    figure, axes = plt.subplots(
        1, len(counts), figsize=(4 * len(counts), 3.2), layout="constrained", squeeze=False
    )
    for axis, count in zip(axes[0], counts, strict=True):
        bars = [s for s in reversed(chosen) if s["connections"] == count]
        middle = [s["per_second"] for s in bars]
        spread = [
            [m - s["lowest"] for m, s in zip(middle, bars, strict=True)],
            [s["highest"] - m for m, s in zip(middle, bars, strict=True)],
        ]
        colors = ["#c2571a" if s["server"] == "hloserve" else "#7b8ea3" for s in bars]
        axis.barh([s["server"] for s in bars], middle, xerr=spread, color=colors, ecolor="#333333")
        axis.set(title=f"{count} connection{'s' * (count > 1)}", xlabel="requests/s")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
