"""Charts say what was measured, when, on which machine and in which unit."""

import json
import re
import shutil

from pytest import mark

from bench import charts
from bench.start.__main__ import chart as start_chart
from tests.serving import ROOT

RESULTS = ROOT / "docs" / "results"
SAVED = sorted(path.name for path in RESULTS.glob("*.json"))


def texts(path):
    """Return what stands in a chart."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text())


@mark.parametrize("name", SAVED)
def test_the_committed_charts_are_those_of_their_data(name, tmp_path):
    """Drawn anew from the data beside it, a chart has the same words and numbers."""
    path = tmp_path / name
    shutil.copy(RESULTS / name, path)

    charts.redraw(path)

    drawn = sorted(tmp_path.glob("*.svg"))
    assert drawn
    for chart in drawn:
        assert texts(chart) == texts(RESULTS / chart.name)


def _counts_requests(path):
    """Whether a chart is of requests a second by connections."""
    data = json.loads(path.with_name(f"{path.stem.removesuffix('-overview')}.json").read_text())
    return any("server" in row for row in data.get("summary", ()))


OF_REQUESTS = [path for path in sorted(RESULTS.glob("*.svg")) if _counts_requests(path)]


@mark.parametrize("path", OF_REQUESTS, ids=lambda path: path.stem)
def test_charts_explain_themselves(path):
    """Each chart has its day, the machine with its versions, and the number at each bar."""
    found = texts(path)
    stem = path.stem.removesuffix("-overview")
    data = json.loads(path.with_name(f"{stem}.json").read_text())
    day = re.search(r"\d{4}-\d\d-\d\d", stem)[0]

    [about] = [text for text in found if text.startswith(day)]
    assert charts.on(data["machine"]) in about
    assert any("requests per second" in text for text in found)
    served = [s for s in data["summary"] if s["connections"] == 64]
    best = max(s["per_second"] for s in served)
    assert f"{best:,.0f}" in found


def test_the_chart_of_starts_explains_itself(tmp_path):
    """It has a title, the day, the machine, the seconds at each bar and the words of its names."""
    machine = {"cpu": "a CPU, 2 cores", "system": "Linux 6", "python": "3.13.5", "jax": "0.12"}
    rows = [{"model": "minilm", "start": name, "seconds": 2.5} for name in ("cached", "mosec")]
    path = tmp_path / "start.svg"

    start_chart({"machine": machine, "summary": rows}, path, day="2026-11-30")

    assert {
        "Seconds from the start of a server to its first answer",
        "2.5 s",
        "seconds",
        "2026-11-30, a CPU, 2 cores, Linux 6, Python 3.13.5, jax 0.12. Bars are medians.",
        "cached: compiled programs are loaded from --cache-dir · mosec, triton: the same programs, from JAX's cache",
    } <= set(texts(path))


def test_the_chart_of_growth_explains_itself():
    """It has the day, the machine with its versions, and what each line is."""
    for path in RESULTS.glob("growth-*.svg"):
        data = json.loads(path.with_suffix(".json").read_text())
        found = texts(path)
        about = f"measured {re.search(r'[0-9]{4}-[0-9]{2}-[0-9]{2}', path.stem)[0]} on {charts.on(data['machine'])}"

        assert any(text.startswith(about) for text in found)
        assert {row["entrance"] for row in data["summary"]} <= set(found)


def test_a_chart_of_bars_explains_itself(tmp_path):
    """It has a title, the day, the machine, a unit, its panels and the number at each bar."""
    machine = {"cpu": "a CPU, 2 cores", "system": "Linux 6", "python": "3.13.5", "jax": "0.12"}
    panels = {"of two": {"ours": 1234.6, "theirs": 99.5}, "small": {"one": 1.25}}
    path = tmp_path / "bars.svg"

    charts.bars(
        {"machine": machine, "title": "Rows", "unit": "rows a second", "panels": panels},
        path,
        day="2026-11-30",
    )

    words = "Rows|rows a second|of two|small|ours|theirs|one|1,235|100|1.25"
    about = "2026-11-30, a CPU, 2 cores, Linux 6, Python 3.13.5, jax 0.12. Bars are medians."
    assert {*words.split("|"), about} <= set(texts(path))


def test_explanations_are_joined_to_lines():
    """Short explanations share a line as far as it goes; a long one has its own."""
    long = "x" * 149

    assert charts.wrapped(["a", "b", long, "c"]) == ["a · b", long, "c"]
