"""Runs over JSONL files: what is written of good rows and of bad ones, and how a run goes on."""

import dataclasses
import errno
import json
import os
import sys

import numpy as np
from pytest import MonkeyPatch, mark, raises

from runtime import load
from runtime.batch_prediction.job import FieldsError, Job, Options, TooManyErrors
from runtime.batch_prediction.output import OutputError, open_output
from runtime.batch_prediction.sources import find_sources
from runtime.program import Program
from tests.runtime.batch_prediction.conftest import started

ROWS = [{"x": [float(i), 0.0, 1.0, 2.0]} for i in range(11)]


def content(folder):
    """Return every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_predictions_are_vertex_ais_lines(classifier, job, jsonl, lines):
    """Each line has the instance as it stood, and the prediction that a server would answer."""
    progress = job(classifier, [jsonl([b'{"x": [0, 0.0, 1, 2]}', b"[1,2,3,4]"])])

    x = np.array([[0, 0, 1, 2], [1, 2, 3, 4]], np.float32)
    assert [line["prediction"] for line in lines()] == classifier.classify({"x": x})
    assert [line["instance"] for line in lines()] == [{"x": [0, 0.0, 1, 2]}, [1, 2, 3, 4]]
    assert [list(line) for line in lines()] == [["instance", "prediction"]] * 2
    assert (progress.rows, progress.predictions, progress.errors) == (2, 2, 0)
    assert progress.complete


def test_a_key_stands_in_place_of_the_instance(classifier, job, jsonl, lines):
    """A row with a `key` is named by it, of any type; one without keeps its instance."""
    rows = [{**ROWS[0], "key": "a"}, {**ROWS[1], "key": {"n": [1, None]}}, ROWS[2]]
    job(classifier, [jsonl(rows)])

    assert [list(line) for line in lines()] == [["key", "prediction"]] * 2 + [
        ["instance", "prediction"]
    ]
    assert [line.get("key") for line in lines()] == ["a", {"n": [1, None]}, None]


def test_fields_pass_through(classifier, job, jsonl, lines):
    """Declared fields are no inputs and are written beside the prediction; others are refused."""
    rows = [
        {**ROWS[0], "id": 7, "lang": "de"},
        {**ROWS[1], "id": 8},
        ROWS[2],
        {**ROWS[3], "id": 9, "x2": 0},
    ]
    job(classifier, [jsonl(rows)], key="id", passed=("lang",))

    assert [{k: v for k, v in line.items() if k != "prediction"} for line in lines()] == [
        {"key": 7, "lang": "de"},
        {"key": 8},
    ]
    assert lines("errors") == [
        {
            "row": 2,
            "file": lines("errors")[0]["file"],
            "line": 3,
            "error": {"code": 3, "message": "expected the key 'id', got none"},
        },
        {
            "row": 3,
            "key": 9,
            "file": lines("errors")[0]["file"],
            "line": 4,
            "error": {"code": 3, "message": "expected 'x', got 'x2'"},
        },
    ]


BAD = {
    b'{"x": [1, 2, 3, "4"]}': "input 'x': expected float32, got a string",
    b'{"x": [1, 2, 3, null]}': "input 'x': expected float32, got null",
    b'{"x": [1, 2, 3]}': "input 'x': expected float32[4], got [3]",
    b'{"x": [[1], [2, 3]]}': "input 'x': expected float32, got lists of different lengths",
    b"{}": "expected 'x', got none",
    b"null": "input 'x': expected float32, got null",
    b'{"x": "\xff"}': "expected UTF-8, got the byte 0xff at 7",
    b'{"x": [1, 2, 3, 4]': "expected JSON, got unexpected end of data: line 1 column 19 (char 18)",
    b'{"x": [1, 2, 3, NaN]}': "expected JSON, got unexpected character, expected a JSON value: line 1 column 17 (char 16)",
    b'{"x": [1, 2, 3, 4], "x": [1, 2, 3, 5]}': "expected each key once, got 'x' twice",
    b'{"x": [1, 2, 3, 4], "key": {"a:": 1, "a:": 2}}': "expected each key once, got 'a:' twice",
    b'{"x": ' + b'{"x": ' * 1010 + b"1" + b"}" * 1011: "expected JSON, got objects hundreds deep",
    b'{"x": [1, 2, 3, 1e300]}': "input 'x': expected float32, got 1e+300",
}


def test_a_bad_row_of_every_kind_is_one_error(classifier, job, jsonl, lines):
    """Each is an entry with its line and the reason; rows between them are answered as ever."""
    mixed = [row for bad in BAD for row in (ROWS[0], bad)]
    progress = job(classifier, [jsonl(mixed)])

    assert [(e["row"], e["line"], e["error"]["message"]) for e in lines("errors")] == [
        (2 * i + 1, 2 * i + 2, why) for i, why in enumerate(BAD.values())
    ]
    assert len({json.dumps(line) for line in lines()}) == 1
    assert (progress.predictions, progress.errors) == (len(BAD), len(BAD))


def test_a_torn_last_line_is_one_error(classifier, job, jsonl, lines):
    """A file that is cut off in its last line has all rows before it."""
    path = jsonl(ROWS[:3])
    path.write_bytes(path.read_bytes()[:-9])
    job(classifier, [path])

    assert [line["instance"] for line in lines()] == ROWS[:2]
    assert [error["line"] for error in lines("errors")] == [3]


def test_a_line_beyond_the_limit_is_one_error(classifier, job, jsonl, lines, monkeypatch):
    """It is not read into memory, and the rows beside it are answered."""
    for module in ("jsonl", "fields"):
        monkeypatch.setattr(f"runtime.batch_prediction.{module}.MAX_LINE_BYTES", 1000)
    job(classifier, [jsonl([ROWS[0], b'{"x": "' + b"a" * 5000 + b'"}', ROWS[1]])])

    assert [line["instance"] for line in lines()] == ROWS[:2]
    assert [(e["line"], e["error"]["message"]) for e in lines("errors")] == [
        (2, "expected a line of at most 1000 bytes, got a longer one")
    ]


@mark.usefixtures("small")
def test_rows_are_in_order_over_files_and_shards(classifier, job, jsonl, lines, tmp_path):
    """Several files are one sequence of rows, whose windows do not end with files."""
    first, second = jsonl(ROWS[:3], "a.jsonl"), jsonl(ROWS[3:], "b.jsonl")
    job(classifier, [first, second])

    assert [line["instance"] for line in lines()] == ROWS
    assert sorted(content(tmp_path / "out")) == [
        "metadata.json",
        "predictions-00000.jsonl",
        "predictions-00001.jsonl",
    ]
    assert len((tmp_path / "out" / "predictions-00000.jsonl").read_bytes().splitlines()) == 8


@mark.usefixtures("small")
def test_a_limit_ends_the_run(classifier, job, jsonl, lines):
    """The first rows are answered, and the run is complete."""
    assert job(classifier, [jsonl(ROWS)], limit=5).complete
    assert [line["instance"] for line in lines()] == ROWS[:5]


def test_raw_outputs_have_no_labels(classifier, job, jsonl, lines):
    """With `raw` a prediction is the output itself."""
    job(classifier, [jsonl(ROWS[:2])], raw=True)

    x = np.array([row["x"] for row in ROWS[:2]], np.float32)
    found = np.array([line["prediction"] for line in lines()], np.float32)
    assert np.array_equal(found, classifier.predict({"x": x})["output"])


def test_lengths_share_full_batches(tagger, job, jsonl, lines, monkeypatch):
    """Rows of mixed lengths are written in order, each cropped to its own length, from few full runs."""
    ran = []
    dispatch = Program.dispatch

    def noted(self, params, inputs):
        ran.append((self.batch, self.axes["seq"]))
        return dispatch(self, params, inputs)

    monkeypatch.setattr(Program, "dispatch", noted)
    rows = [{"ids": [1] * (2 + 5 * (i % 2))} for i in range(9)]
    job(tagger, [jsonl(rows)])

    assert ran == [(4, 4), (1, 4), (4, 8)]
    assert [len(line["prediction"]["scores"]) for line in lines()] == [2, 7] * 4 + [2]
    alone = tagger.predict({"ids": np.ones((1, 7), np.int32)})
    assert np.allclose(lines()[1]["prediction"]["mean"], alone["mean"][0], rtol=1e-5)


def test_the_device_has_further_runs_while_outputs_are_fetched(classifier, job, jsonl, monkeypatch):
    """Four runs are dispatched ahead of the one whose outputs are waited for, and no more."""
    seen = []

    def noted(name):
        method = getattr(Program, name)

        def call(self, *arguments):
            seen.append(name)
            return method(self, *arguments)

        monkeypatch.setattr(Program, name, call)

    noted("dispatch")
    noted("fetch")
    job(classifier, [jsonl([ROWS[0]] * 4 * 7)])

    assert seen == [*["dispatch"] * 5, "fetch", *["dispatch", "fetch"] * 2, *["fetch"] * 4]


def test_rows_that_mix_run_alone(mixing_bundle, job, jsonl, lines):
    """Where rows depend on each other each is answered by itself."""
    model = load(mixing_bundle, "cpu")
    job(model, [jsonl([{"x": [1, 2]}, {"x": [5, 9]}])])

    assert [line["prediction"] for line in lines()] == [[0, 0], [0, 0]]


@mark.usefixtures("small")
def test_an_interrupted_run_goes_on(classifier, job, jsonl, tmp_path):
    """It begins behind the last complete shard, and leaves the bytes of a run that was not interrupted."""
    path = jsonl([*ROWS, b"broken", *ROWS])
    job(classifier, [path], out=tmp_path / "whole")
    seen = []

    def stop(rows, *_):
        seen.append(rows)
        if rows >= 16:
            raise KeyboardInterrupt

    with raises(KeyboardInterrupt):
        job(classifier, [path], on_window=stop)
    assert sorted(content(tmp_path / "out")) == ["metadata.json", "predictions-00000.jsonl"]
    job(classifier, [path], on_window=lambda rows, *_: seen.append(rows))

    assert seen == [4, 8, 12, 16, 12, 16, 20, 23]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@mark.usefixtures("small")
def test_what_is_not_recorded_is_written_again(classifier, job, jsonl, tmp_path):
    """Shards beyond the record, which a kill between two renames leaves, do not count."""
    path = jsonl([*ROWS, b"broken", *ROWS])
    whole = tmp_path / "whole"
    job(classifier, [path], out=whole)

    def stop(rows, *_):
        if rows >= 12:
            raise KeyboardInterrupt

    with raises(KeyboardInterrupt):
        job(classifier, [path], on_window=stop)
    for name in (
        "predictions-00001.jsonl",
        "errors-00001.jsonl",
        ".predictions-00002.jsonl.partial",
    ):
        (tmp_path / "out" / name).write_bytes(b"half")
    job(classifier, [path])

    assert content(tmp_path / "out") == content(whole)


@mark.usefixtures("small")
def test_overwriting_removes_shards_that_are_no_more(classifier, job, jsonl, tmp_path):
    """A shorter run leaves nothing of a longer one."""
    job(classifier, [jsonl([*ROWS, b"broken"])])
    job(classifier, [jsonl(ROWS[:2])], overwrite=True)

    assert sorted(content(tmp_path / "out")) == ["metadata.json", "predictions-00000.jsonl"]


def interrupted(job, classifier, path, **options):
    """Run until the first shard is complete."""

    def stop(rows, *_):
        if rows > 8:
            raise KeyboardInterrupt

    with raises(KeyboardInterrupt):
        job(classifier, [path], on_window=stop, **options)


@mark.usefixtures("small")
def test_another_run_does_not_go_on(classifier, job, jsonl, tmp_path):
    """An input that changed, or another option, is refused with what it was and what it is."""
    path = jsonl(ROWS)
    interrupted(job, classifier, path)
    with raises(OutputError) as option:
        job(classifier, [path], raw=True)
    path.write_bytes(path.read_bytes() + b"[1,2,3,4]\n")
    with raises(OutputError) as changed:
        job(classifier, [path])

    out = f"--out {tmp_path / 'out'}: expected the run that was begun here, with"
    assert str(option.value) == (
        f"{out} options raw false, got true; pass --overwrite, or take another folder"
    )
    size = path.stat().st_size
    assert str(changed.value) == (
        f"{out} inputs {path} bytes {size - 10}, got {size}; pass --overwrite, or take another folder"
    )


@mark.usefixtures("small")
def test_too_many_errors_end_the_run(classifier, job, jsonl, lines):
    """One error too many ends the run with the reason; complete shards stay, and a larger limit resumes it."""
    path = jsonl([*ROWS, b"broken", b"broken"])
    with raises(TooManyErrors) as error:
        job(classifier, [path], max_errors=1)
    assert len(lines()) == 8
    job(classifier, [path], max_errors=2)

    assert str(error.value) == (
        "rows: expected at most 1 that are refused, got 2; the last: expected JSON, got unexpected "
        "character, expected a JSON value: line 1 column 1 (char 0)"
    )
    assert len(lines()) == 11


@mark.usefixtures("small")
def test_no_program_runs_once_a_run_has_failed(classifier, job, jsonl, monkeypatch):
    """A run that is ended by an error leaves no thread inside of the device."""
    running = []
    call = Program.dispatch

    def noted(self, *arguments):
        running.append(1)
        try:
            return call(self, *arguments)
        finally:
            running.pop()
            ended.append(len(failed))

    ended, failed = [], []
    monkeypatch.setattr(Program, "dispatch", noted)
    with raises(TooManyErrors):
        job(classifier, [jsonl([b"broken", *ROWS * 50])], max_errors=0)
    failed.append(1)
    drained = job(classifier, [jsonl(ROWS[:4])], overwrite=True)

    assert drained.predictions == 4
    assert (running, ended.count(1)) == ([], 1)


@mark.usefixtures("small")
def test_a_full_disk_leaves_no_partial_file(classifier, job, jsonl, tmp_path, monkeypatch):
    """The error has the disk's own reason, complete shards stay, and the run resumes once there is space."""
    path = jsonl(ROWS)
    replaced = []

    def fail(self):
        replaced.append(1)
        if len(replaced) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return finish(self)

    finish = sys.modules["runtime.batch_prediction.writers"]._JsonLines.finish
    with monkeypatch.context() as patch:
        patch.setattr("runtime.batch_prediction.writers._JsonLines.finish", fail)
        with raises(OSError, match="No space left on device"):
            job(classifier, [path])
    assert sorted(content(tmp_path / "out")) == ["metadata.json", "predictions-00000.jsonl"]
    job(classifier, [path])
    job(classifier, [path], out=tmp_path / "whole")

    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_the_record_says_what_ran(classifier, tmp_path, jsonl):
    """The record has the digest, the versions, the device and the result of the startup check."""
    path = jsonl(ROWS)
    job = Job(started(classifier), find_sources([str(path)], None), Options())
    with open_output(tmp_path / "out", tmp_path) as output:
        job.run(output, tmp_path)
    found = json.loads((tmp_path / "out" / "metadata.json").read_bytes())

    assert found["bundle"] == {
        "name": "classifier",
        "version": "1",
        "digest": f"sha256:{classifier.bundle.digest}",
    }
    assert found["startup_check"] == {
        "check": "startup",
        "ok": True,
        "checked": ["checked"],
        "row_mixing": [],
    }
    assert {"hloserve", "jax", "jaxlib", "numpy"} <= set(found["versions"])
    assert found["progress"] == {
        "shards": 1,
        "rows": 11,
        "predictions": 11,
        "errors": 0,
        "complete": True,
    }


def test_no_rows_are_a_complete_run(classifier, job, jsonl, lines):
    """An empty file has one shard without predictions."""
    progress = job(classifier, [jsonl([])])

    assert (progress.rows, progress.shards, progress.complete) == (0, 1, True)
    assert lines() == []


def test_an_infinite_answer_is_null(classifier, job, jsonl, lines, monkeypatch):
    """What JSON has no way to write is null, of that row alone."""
    fetch = Program.fetch

    def with_nan(self, outputs):
        found = [np.array(output) for output in fetch(self, outputs)]
        found[0][0] = np.nan
        return tuple(found)

    monkeypatch.setattr(Program, "fetch", with_nan)
    job(classifier, [jsonl(ROWS[:3])], raw=True)

    assert lines()[0]["prediction"] == [None, None, None]
    assert all(value is not None for value in lines()[1]["prediction"])


@mark.parametrize(
    ("options", "message"),
    [
        ({"key": "x"}, "--key x: expected a field that is no input, got an input"),
        ({"passed": ("x",)}, "--pass x: expected a field that is no input, got an input"),
        (
            {"passed": ("row",)},
            "--pass row: expected another name than key, row, instance, prediction, got 'row'",
        ),
    ],
)
def test_a_field_that_cannot_be_one(options, message, classifier, job, jsonl):
    """An input is no field beside inputs, and the names of predictions stay free."""
    with raises(FieldsError) as error:
        job(classifier, [jsonl(ROWS)], **options)

    assert str(error.value) == message


def test_fields_of_the_bundle_pass_through(classifier, job, jsonl, lines):
    """What the bundle was exported with as no input passes through without being named."""
    manifest = dataclasses.replace(classifier.manifest, passthrough=("lang", "key"))
    bundle = dataclasses.replace(classifier.bundle, manifest=manifest)
    with MonkeyPatch.context() as patch:
        patch.setattr(classifier, "bundle", bundle)
        job(classifier, [jsonl([{**ROWS[0], "lang": "de", "key": 1, "id": 2}])], key="id")

    assert [{k: v for k, v in line.items() if k != "prediction"} for line in lines()] == [
        {"key": 2, "lang": "de"}
    ]


@mark.usefixtures("small")
def test_another_kind_of_check_is_the_same_run(classifier, jsonl, tmp_path):
    """A run resumes whether its start made the full check or the quick one."""
    path = jsonl(ROWS)

    def stop(rows, *_):
        if rows > 8:
            raise KeyboardInterrupt

    full = dataclasses.replace(started(classifier), full=True, groups=("all",))
    with open_output(tmp_path / "out", tmp_path) as output, raises(KeyboardInterrupt):
        Job(full, find_sources([str(path)], None), Options()).run(output, tmp_path, on_window=stop)
    with open_output(tmp_path / "out", tmp_path) as output:
        progress = Job(started(classifier), find_sources([str(path)], None), Options()).run(
            output, tmp_path
        )

    assert (progress.rows, progress.complete) == (11, True)
