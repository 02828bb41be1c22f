"""The bench of sentences: what it sends, what it concludes, and the chart of what it saved."""

import json
import re

import numpy as np
from pytest import approx

from bench import results
from bench.charts import redraw
from bench.raw import __main__ as raw
from bench.raw import prepare
from bench.raw.workload import Sentences
from bench.serving.measure import Row

MACHINE = {"cpu": "a CPU, 2 cores", "system": "Linux 6", "python": "3.13.5", "jax": "0.12"}


def row(server, per_second, *, number=0, model="minilm", connections=16, wrong=""):
    """Return a cell of one round."""
    return Row(number, server, "as it comes", model, connections, per_second, 10, 20, wrong=wrong)


def test_a_sentence_is_sent_in_three_forms():
    """The same sentence is an instance of ids, a text, or the input of an OpenAI client."""
    work = Sentences([{"input_ids": [5, 6]}], np.zeros((1, 2)), "embedding", 1e-4, (), ("a b",))

    bodies = {dialect: json.loads(work.body(0, dialect)[0]) for dialect in raw.DIALECTS}

    assert bodies == {
        "vertex": {"instances": [{"input_ids": [5, 6]}]},
        "text": {"instances": ["a b"]},
        "openai": {"input": ["a b"], "model": "minilm"},
    }


def test_goals_compare_cells_of_the_same_round():
    """A goal is the median of the ratios of the rounds in which both count, and is reached or not."""
    rows = [
        *(row(raw.TEXT, 90, number=0), row(raw.IDS, 100, number=0)),
        *(row(raw.TEXT, 40, number=1), row(raw.IDS, 50, number=1)),
        *(row(raw.TEXT, 1, number=2), row(raw.IDS, 100, number=2, wrong="3 refused")),
        *(row(raw.OPENAI, 300, connections=64), row(raw.PEER, 100, connections=64)),
    ]

    texts, peer = raw.reached(rows)

    assert (
        texts["goal"]
        == "minilm, 16 connections: hloserve, texts at least 0.9 \u00d7 of hloserve, ids"
    )
    assert (texts["ratio"], texts["reached"]) == (approx(0.85), False)
    assert (
        peer["goal"]
        == "minilm, 64 connections: hloserve, OpenAI at least 1.2 \u00d7 of infinity-emb"
    )
    assert (peer["ratio"], peer["reached"]) == (3, True)


def test_what_is_saved_has_its_chart(tmp_path, monkeypatch):
    """The saved figures are drawn, by their names and numbers, and drawn anew are the same."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "describe", lambda: MACHINE)
    rows = [
        *(row(raw.TEXT, 1234), row(raw.IDS, 1300), row(raw.PEER_ONNX, 567)),
        row(raw.TEXT, 4321, model="reviews", connections=64),
    ]

    raw.save(rows, raw.summarize(rows), goals=[], encode_us={"minilm": 41.5}, peer={})

    [chart] = tmp_path.glob("*.svg")
    drawn = chart.read_bytes()
    words = set(re.findall(r"<text[^>]*>([^<]+)</text>", drawn.decode()))
    assert {"texts", "the same as ids", "infinity-emb, ONNX", "1,234", "567", "4,321"} <= words
    assert (
        "From above: minilm, reviews. A sentence takes the tokenizer by itself: minilm 42 µs."
        in words
    )
    redraw(chart.with_suffix(".json"))
    assert chart.read_bytes() == drawn


def test_the_versions_of_the_peer_are_those_that_are_pinned():
    """Results name the peer's packages by their versions, without extras."""
    versions = prepare.versions()

    assert {"infinity-emb", "torch", "transformers", "optimum", "onnxruntime"} <= set(versions)
    assert all(re.fullmatch(r"[\d.]+", version) for version in versions.values())
