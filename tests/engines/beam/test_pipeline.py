"""Pipelines of Beam's own runner, with the workers that it has."""

import functools
import json
import subprocess
import sys

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.ml.inference.base import KeyedModelHandler, ModelMetadata, RunInference
from apache_beam.transforms.window import TimestampedValue
from pytest import mark

from hloserve.beam import HloserveModelHandler, RefusedRow, raise_refused
from tests.engines.beam.pipelines import labels, made, pipeline, row, side
from tests.engines.exported import ROOT, shown


@mark.parametrize(
    ("name", "mode"),
    [
        ("sides", "multi_threading"),
        ("averages", "multi_threading"),
        ("averages", "multi_processing"),
    ],
)
def test_two_workers_answer_all_rows(name, mode, bundles, collected):
    """Two threads or two processes answer each row once, in whatever batches they come."""
    handler = KeyedModelHandler(HloserveModelHandler(bundles / name))
    with pipeline(mode, 2) as p:
        numbers = p | beam.Create(range(150))
        rows = (
            made(numbers)
            if name == "sides"
            else numbers | "Row" >> beam.Map(lambda i: (i, {"ids": np.full(1 + i % 8, i % 16)}))
        )
        read = collected.add(
            rows | RunInference(handler) | "Keep" >> beam.Map(lambda kv: (kv[0], kv[1].inference))
        )

    found = dict(read())
    assert sorted(found) == list(range(150))
    if name == "sides":
        assert [found[i]["label"] for i in range(150)] == [side(i) for i in range(150)]
    else:
        for i in range(16, 150):
            np.testing.assert_allclose(found[i]["mean"], found[i % 16]["mean"], rtol=1e-5)


def test_one_model_serves_several_processes(bundles, collected):
    """With large_model=True the rows of all processes are answered by one model."""
    handler = HloserveModelHandler(bundles / "sides", large_model=True)
    with pipeline("multi_threading", 2) as p:
        read = collected.add(
            made(p | beam.Create(range(70)))
            | RunInference(KeyedModelHandler(handler))
            | "Keep" >> beam.Map(labels)
        )

    assert {key: label for key, label, _ in read()} == {i: side(i) for i in range(70)}


def test_a_bad_row_is_a_result_by_itself(bundles, run):
    """Ten bad rows of a hundred are ten results with an error; the metrics count them."""
    rows = [{"x": [1, None]} if i % 10 == 3 else row(i) for i in range(100)]
    found, metrics = run(
        HloserveModelHandler(bundles / "sides"),
        rows,
        keep=lambda result: result.inference,
    )

    refused = [one for one in found if isinstance(one, RefusedRow)]
    assert refused == [RefusedRow("input 'x': expected float32, got null")] * 10
    assert len(found) == 100
    counters = {c.key.metric.name: c.committed for c in metrics.query()["counters"]}
    assert (counters["refused_rows"], counters["num_inferences"]) == (10, 100)
    assert {c.key.metric.namespace for c in metrics.query()["counters"]} == {"BeamML_Hloserve"}


@mark.parametrize("keyed", [False, True])
def test_bad_rows_are_dead_letters_each_by_itself(keyed, bundles, collected):
    """With `raise_refused` each bad row is a dead letter, and no row beside it is."""
    rows = [(i, {"x": [1, None]} if i % 10 == 3 else row(i)) for i in range(100)]
    handler = HloserveModelHandler(bundles / "sides")
    handler = KeyedModelHandler(handler) if keyed else handler
    with pipeline() as p:
        found = p | beam.Create(rows if keyed else [row for _, row in rows])
        good, dead = (
            found
            | RunInference(handler.with_postprocess_fn(raise_refused)).with_exception_handling()
        )
        read_good = collected.add(good)
        read_dead = collected.add(dead.failed_postprocessing[0])
        read_failed = collected.add(dead.failed_inferences)

    assert len(read_good()) == 90
    assert read_failed() == []
    errors = [error for _, (_, error, _) in read_dead()]
    assert errors == ["InvalidInput(\"input 'x': expected float32, got null\")"] * 10
    if keyed:
        assert sorted(key for (key, _), _ in read_dead()) == list(range(3, 100, 10))


def test_functions_before_and_after(bundles, run):
    """`with_preprocess_fn` makes rows of what comes in, and `with_postprocess_fn` sees the results."""
    handler = (
        HloserveModelHandler(bundles / "sides")
        .with_preprocess_fn(row)
        .with_postprocess_fn(lambda result: result.inference["label"])
    )
    found, _ = run(handler, list(range(20)))

    assert sorted(found) == sorted(side(i) for i in range(20))


def test_texts_in_a_pipeline(bundles, run):
    """Texts are batched by their estimated lengths, and all are answered."""
    texts = [" ".join(["cat"] * (1 + i % 6)) for i in range(40)]
    found, _ = run(
        HloserveModelHandler(bundles / "sentences"),
        texts,
        keep=lambda result: (result.example, result.inference["mean"].shape),
    )

    assert sorted(found) == sorted((text, (4,)) for text in texts)


def test_a_bundle_is_replaced_while_rows_come(bundles, collected):
    """A side input with another path has later rows answered by that bundle, as their results say."""
    second = str(bundles / "other")
    handler = KeyedModelHandler(HloserveModelHandler(bundles / "sides"))
    windows = beam.WindowInto(beam.window.FixedWindows(10))
    with pipeline() as p:
        updates = (
            p
            | "Updates" >> beam.Create([(1, str(bundles / "sides")), (21, second)])
            | beam.MapTuple(lambda at, path: TimestampedValue(ModelMetadata(path, f"at{at}"), at))
            | "Windows of updates" >> windows
        )
        rows = (
            p
            | beam.Create([(1, 0), (21, 2)])
            | "Times" >> beam.MapTuple(lambda at, i: TimestampedValue((i, row(i)), at))
            | "Windows of rows" >> windows
        )
        read = collected.add(
            rows | RunInference(handler, model_metadata_pcoll=updates) | "Keep" >> beam.Map(labels)
        )

    (first, before, old), (last, after, new) = sorted(read())
    assert (first, before, last, after) == (0, "left", 2, "right")
    assert old == HloserveModelHandler(bundles / "sides")._digest
    assert new == HloserveModelHandler(second)._digest


def test_the_example_scores_parquet_files(bundles, tmp_path):
    """examples/beam_parquet.py writes a row for each that fits, and a line for each that does not."""
    (tmp_path / "in").mkdir()
    xs = [[float(i % 7), 3.0] for i in range(200)]
    xs[17] = [1.0]
    pq.write_table(pa.table({"id": range(200), "x": xs}), tmp_path / "in" / "rows.parquet")
    command = [
        *(sys.executable, "examples/beam_parquet.py", "--bundle", str(bundles / "sides")),
        *("--input", str(tmp_path / "in" / "*.parquet"), "--output", str(tmp_path / "out")),
        *("--runner", "FnApiRunner"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    [scored] = (tmp_path / "out").glob("scored*.parquet")
    rows = pq.read_table(scored).to_pylist()
    assert {row["id"]: row["label"] for row in rows} == {
        i: "left" if x[0] >= 3 else "right" for i, x in enumerate(xs) if i != 17
    }
    [refused] = (tmp_path / "out").glob("refused*.jsonl")
    assert [json.loads(line) for line in refused.read_text().splitlines()] == [
        {"id": 17, "error": "input 'x': expected float32[_, 2], got float32[1, 1]"}
    ]


def test_predictions_are_those_that_predict_writes(bundles, tmp_path, run):
    """The columns of a Parquet file of `predict`, and their values, are those of results."""
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x)
    command = [
        *(sys.executable, "-m", "runtime", "predict", str(bundles / "sides")),
        *(str(tmp_path / "rows.npz"), "--out", str(tmp_path / "out"), "--format", "parquet"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    expected = pq.read_table(tmp_path / "out" / "predictions-00000.parquet").to_pylist()

    found, _ = run(
        HloserveModelHandler(bundles / "sides"),
        [{"x": one} for one in x],
        keep=lambda result: (result.example["x"].tobytes(), result.inference),
    )

    by_row = dict(found)
    for one, wanted in zip(x, expected, strict=True):
        prediction = by_row[one.tobytes()]
        assert {"row", *prediction} == set(wanted)
        assert prediction["label"] == wanted["label"]
        np.testing.assert_allclose(prediction["probabilities"], wanted["probabilities"], rtol=1e-6)


def test_the_guide_shows_a_pipeline(bundles, tmp_path, monkeypatch, capsys):
    """What docs/batch.md shows prints the prediction of the good row, and what is wrong with the other."""
    (tmp_path / "bundle").symlink_to(bundles / "sides")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(beam, "Pipeline", functools.partial(beam.Pipeline, runner="FnApiRunner"))

    exec(shown("HloserveModelHandler"), {})  # noqa: S102

    digest = HloserveModelHandler(bundles / "sides")._digest
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"a left {digest}",
        "b InvalidInput(\"input 'x': expected float32, got null\")",
    ]
