"""What all charts have: a title, the day, the machine, and what is on them in words.

    python -m bench.charts docs/results/serving-2026-11-28-python3.13.json

draws a chart anew from the data that was saved beside it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

OURS, THEIRS = "#c2571a", "#7b8ea3"
_WIDE = 150  # characters of a line below a chart


def drawing() -> ModuleType:
    """Import matplotlib's drawing, such that the same data gives the same bytes."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "hloserve"
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text: a quarter of the bytes, and searchable
    from matplotlib import pyplot as plt

    return plt


def on(machine: Mapping[str, str]) -> str:
    """Name a machine and its versions, as `bench.machine.describe` gives them."""
    versions = f"Python {machine['python']}, jax {machine['jax']}"
    return f"{machine['cpu']}, {machine['system'].partition('-')[0]}, {versions}"


def wrapped(parts: Sequence[str]) -> list[str]:
    """Join explanations to lines that a chart is wide enough for."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) < _WIDE:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def describe_figure(figure: Any, title: str, notes: Sequence[str]) -> None:
    """Put a title above all panels and notes below them."""
    figure.suptitle(title, fontsize="x-large")
    figure.supxlabel("\n".join(notes), fontsize="small", color="#444444", x=0.01, ha="left")


def save(figure: Any, path: Path) -> None:
    """Write a figure without the time of its drawing."""
    figure.savefig(path, metadata={"Date": None})


def bars(found: Mapping[str, Any], path: Path, *, day: str) -> None:
    """Draw a panel of bars for each comparison.

    Args:
      found: `machine`, `title`, `unit`, and `panels`: the name of each to its bars by name.
      path: of the chart.
      day: of the measurement.
    """
    panels = found["panels"]
    rows = [len(of) for of in panels.values()]
    figure, axes = drawing().subplots(
        len(panels),
        figsize=(9, 1.2 + sum(0.7 + 0.35 * count for count in rows)),
        height_ratios=[1 + count for count in rows],
        layout="constrained",
        squeeze=False,
    )
    for axis, (name, of) in zip(axes[:, 0], panels.items(), strict=True):
        drawn = axis.barh(list(reversed(of)), list(reversed(of.values())), color=OURS)
        axis.bar_label(drawn, fmt="{:,.4g}" if max(of.values()) < 100 else "{:,.0f}", padding=3)
        axis.set_title(name, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
    axes[-1, 0].set_xlabel(found["unit"])
    describe_figure(figure, found["title"], [f"{day}, {on(found['machine'])}. Bars are medians."])
    save(figure, path)


def main() -> None:
    """Draw charts anew."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.charts", description="Draw charts of saved measurements anew."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON")
    for path in parser.parse_args().files:
        redraw(path)


def redraw(path: Path) -> None:
    """Draw the chart of a file of measurements beside it."""
    from bench.serving import growth, grpc_fronts, report
    from bench.start import __main__ as start

    kind, _, rest = path.stem.partition("-")
    day, _, _ = rest.partition("-python")
    found = json.loads(path.read_text())
    own = {"start": start.chart, "growth": growth.chart, "grpc": grpc_fronts.chart}
    if "panels" in found:
        bars(found, path.with_suffix(".svg"), day=day)
    elif kind in own:
        own[kind](found, path.with_suffix(".svg"), day=day)
    else:
        report.charts(kind, found, path.with_suffix(".svg"), day=day)


if __name__ == "__main__":
    main()
