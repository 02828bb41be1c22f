"""Time every program of a bundle: the bare call, and `predict` around it."""

import datetime as dt
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.description import columns, infinite_outputs
from runtime.device import device_kind
from runtime.errors import printable
from runtime.model import Group, Model
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.raw_goldens import read_raw
from runtime.program_forms import jax_version
from runtime.signature import bucket_name

Progress = Callable[[str], None]
Figures = dict[str, Any]


def bench(model: Model, seconds: float, *, progress: Progress | None = None) -> Figures:
    """Time each program for some seconds, bare calls and `predict` in turn.

    Args:
      model: loaded.
      seconds: for each program.
      progress: called before each program.

    Returns:
      The device, versions, and for each program medians in microseconds; where texts or images are
      taken, the median for one row of the goldens.
    """
    progress = progress or (lambda _: None)
    rows = []
    prepared = None
    if model.preparer is not None:
        progress("timing preprocess")
        prepared = _time_preparing(model, model.preparer, seconds)
    for group in model.groups.values():
        for batch in group.programs:
            name = bucket_name(model.signature, group.sizes, batch)
            progress(f"timing {name}")
            rows.append({"bucket": name, "rows": batch, **_time(model, group, batch, seconds)})
    return {
        "model": f"{model.manifest.name} version {model.manifest.version}",
        "device": f"{model.platform} ({device_kind(model.device)})",
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "jax": jax_version(),
        "python": platform.python_version(),
        "infinite_outputs": infinite_outputs(model.signature),
        "programs": rows,
        **({} if prepared is None else {"preprocess_us": prepared}),
    }


def _time_preparing(model: Model, preparer: Preparer, seconds: float) -> float:
    """Return the median microseconds that one row of raw goldens takes to become tensors.

    Inputs that no stage makes are left out: they are taken as they are.
    """
    goldens = [golden for golden in model.manifest.goldens if golden.raw]
    rows = [row for golden in goldens for row in read_raw(model.bundle, golden)]
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < len(rows):
        row = rows[len(taken) % len(rows)]
        columns = {name: [value] for name, value in row.items()}
        taken.append(_taken(lambda: preparer.read(columns)))  # noqa: B023 (called at once)
    return float(np.median(taken)) * 1e6


def _time(model: Model, group: Group, batch: int, seconds: float) -> dict[str, float]:
    inputs = model.blank(batch, group.sizes)
    named = {s.name: a for s, a in zip(model.signature.inputs, inputs, strict=True)}
    program = group.programs[batch]
    bare: list[float] = []
    whole: list[float] = []
    end = time.perf_counter() + seconds
    # In turn, and each first as often as second: whatever the machine does hits both alike.
    pair = [
        (bare, lambda: program.call(model.params, inputs)),
        (whole, lambda: model.predict(named)),
    ]
    while time.perf_counter() < end or len(bare) < 6:
        for taken, run in pair:
            taken.append(_taken(run))
        pair.reverse()
    call, predict = float(np.median(bare)), float(np.median(whole))
    return {
        "call_us": call * 1e6,
        "predict_us": predict * 1e6,
        "overhead_us": float(np.median(np.subtract(whole, bare))) * 1e6,
        "rows_per_s": batch / predict,
    }


def _taken(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def table(figures: Figures) -> str:
    """Write the figures for people."""
    header = ("bucket", "call", "predict", "overhead", "rows/s")
    rows = [
        (
            p["bucket"],
            f"{p['call_us']:,.0f} µs",
            f"{p['predict_us']:,.0f} µs",
            f"{p['overhead_us']:,.0f} µs",
            f"{p['rows_per_s']:,.0f}",
        )
        for p in figures["programs"]
    ]
    about = f"{figures['model']} on {figures['device']}, jax {figures['jax']}"
    if "preprocess_us" in figures:
        about += f", {figures['preprocess_us']:,.0f} µs to prepare a row"
    lines = [about, *(f"may be infinite: {name}" for name in figures["infinite_outputs"])]
    return "\n".join([*map(printable, lines), "", columns([header, *rows])])


def chart(figures: Figures, path: Path) -> None:
    """Draw rows/s and latency over the buckets, as .svg or .png; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    programs = figures["programs"]
    names = [p["bucket"] for p in programs]
    figure, (rates, times) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    bars = rates.bar(names, [p["rows_per_s"] for p in programs], color="#3b6ea5")
    rates.bar_label(bars, labels=[f"{p['rows_per_s']:,.0f}" for p in programs], padding=3)
    rates.set(title="throughput of predict()", xlabel="bucket", ylabel="rows per second")
    rates.margins(y=0.12)
    for key, label in (("call_us", "bare call of the program"), ("predict_us", "predict()")):
        times.plot(names, [p[key] / 1e3 for p in programs], "o-", label=label)
    for name, program in zip(names, programs, strict=True):
        took = program["predict_us"] / 1e3
        times.annotate(
            f"{took:.3g}", (name, took), xytext=(0, 6), textcoords="offset points", ha="center"
        )
    times.set(title="median latency", xlabel="bucket", ylabel="milliseconds", yscale="log")
    times.margins(y=0.15)
    times.legend()
    for axis in (rates, times):
        axis.tick_params(axis="x", rotation=45)
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(printable(f"{figures['model']} on {figures['device']}"), fontsize="x-large")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    about = f"{today}, {platform.machine()}, {platform.system()}, jax {figures['jax']}"
    figure.supxlabel(
        f"{about}. A bucket is the batch a program is compiled for: b8 holds 8 rows.",
        fontsize="small",
    )
    figure.savefig(path)
    plt.close(figure)
