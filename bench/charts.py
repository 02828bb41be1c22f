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
    if kind in own:
        own[kind](found, path.with_suffix(".svg"), day=day)
    else:
        report.charts(kind, found, path.with_suffix(".svg"), day=day)


if __name__ == "__main__":
    main()
