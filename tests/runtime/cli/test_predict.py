"""`python -m runtime predict`: its lines, its statuses, and how it ends when it is interrupted."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from pytest import fixture, mark, raises, skip

from runtime.__main__ import main
from runtime.batch_prediction.blocks import Position
from runtime.batch_prediction.fields import ReadBlock
from runtime.batch_prediction.prediction import AnsweredWindow, Answers, PlannedRows, ReadyWindow
from runtime.batch_prediction.rows import Rows
from runtime.batch_prediction.writers import Written, open_shard
from runtime.entries import OutputFormat
from tests.altered_bundles import with_other_golden

ROOT = Path(__file__).parents[3]
ROWS = [{"x": [i, 0, 1, 2], "key": i} for i in range(6)]


@fixture
def rows(tmp_path):
    """Six rows, and one that is broken, as JSONL."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS) + "broken\n")
    return path


@fixture
def predict(classifier_bundle, tmp_path, capsys):
    """Runs the command in this process; return its status, and what it prints on each stream."""

    def run(*arguments, bundle=classifier_bundle):
        out = ("--out", str(tmp_path / "out"), "--device", "cpu")
        status = main(["predict", str(bundle), *map(str, arguments), *out])
        return status, *capsys.readouterr()

    return run


def test_a_run_ends_in_one_line(predict, rows, tmp_path):
    """The line has the predictions, the rows, the folder and the errors; the status is 0."""
    status, out, _ = predict(rows)

    assert status == 0
    assert out.startswith(
        f"6 predictions of 7 rows in {tmp_path / 'out'}, 1 errors in errors-*.jsonl; "
    )
    assert out.endswith(" rows/s\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "errors-00000.jsonl",
        "metadata.json",
        "predictions-00000.jsonl",
    ]


def test_the_summary_for_machines(predict, rows, tmp_path):
    """With --json the output is one object, and nothing else if there is no error."""
    status, out, err = predict(rows, "--json")

    summary = json.loads(out)
    assert (status, err) == (0, "")
    assert {k: v for k, v in summary.items() if "second" not in k} == {
        "out": str(tmp_path / "out"),
        "rows": 7,
        "predictions": 6,
        "errors": 1,
        "shards": 1,
    }


def test_a_second_run_is_refused(predict, rows, tmp_path):
    """A complete folder is kept, with status 2 and one line."""
    predict(rows)
    status, out, err = predict(rows)

    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"error: --out {tmp_path / 'out'}: expected an empty folder, got the complete output of a run; pass "
        "--overwrite, or take another folder"
    )
    assert predict(rows, "--overwrite")[0] == 0


def test_an_output_that_exists_is_refused_before_the_bundle_is_opened(predict, rows, tmp_path):
    """Whatever the bundle, a complete folder and one with other files are refused first."""
    predict(rows)
    complete = predict(rows, bundle=tmp_path / "gone")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    (tmp_path / "out" / "thesis.tex").write_text("…")
    other = predict(rows, bundle=tmp_path / "gone")

    out = f"error: --out {tmp_path / 'out'}: expected an empty folder, "
    assert complete == (
        2,
        "",
        f"{out}got the complete output of a run; pass --overwrite, or take another folder\n",
    )
    assert other == (
        2,
        "",
        f"{out}or that of an earlier run, got 'thesis.tex' in it; take another folder\n",
    )


def test_a_bundle_that_is_not_there_leaves_no_folder(predict, rows, tmp_path):
    """The folder of a run that did not begin is removed again, and one that was there stays."""
    assert predict(rows, bundle=tmp_path / "gone")[0] == 3
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    predict(rows, bundle=tmp_path / "gone")

    assert (tmp_path / "out").exists()


def test_too_many_errors_are_status_1(predict, rows):
    """The line names the limit and the last reason."""
    status, out, err = predict(rows, "--max-errors", "0")

    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == (
        "error: rows: expected at most 0 that are refused, got 1; the last: expected JSON, got unexpected "
        "character, expected a JSON value: line 1 column 1 (char 0)"
    )


def test_no_predictions_at_all_are_status_1(predict, tmp_path):
    """Where no row fits the run is complete, and did not succeed."""
    path = tmp_path / "bad.jsonl"
    path.write_text("[1]\n[2]\n")

    assert predict(path)[0] == 1


@mark.parametrize(
    ("arguments", "message"),
    [
        (("gone.jsonl",), "input gone.jsonl: expected a file or a folder with files, got none"),
        (("-", "-"), "input -: expected stdin once, got it twice"),
        (
            ("-", "--input-format", "npz"),
            "input -: expected jsonl, got npz",
        ),
        (
            ("s3://b/x.jsonl",),
            "input: expected a path on this machine, got 's3://b/x.jsonl'; copy it here first: aws s3 cp --recursive s3://b/x.jsonl x.jsonl and pass x.jsonl",
        ),
    ],
)
def test_inputs_that_are_none(arguments, message, predict):
    """Each is one line, with status 2, before anything is compiled."""
    assert predict(*arguments) == (2, "", f"error: {message}\n")


def test_a_bundle_that_does_not_match_its_goldens_predicts_nothing(
    predict, rows, classifier_bundle, tmp_path
):
    """The startup check runs first: status 4, and no predictions."""
    altered = with_other_golden(classifier_bundle, tmp_path / "altered")
    status, out, err = predict(rows, bundle=altered)

    assert (status, out) == (4, "")
    assert "golden checks failed on this device, first: b" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line(predict, rows, tmp_path, monkeypatch):
    """The line names the folder and the disk's reason; nothing partial is left."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("runtime.batch_prediction.writers._JsonLines.add", full)
    status, out, err = predict(rows)

    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {tmp_path / 'out'}: No space left on device"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metadata.json"]


@fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        skip("needs leave to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@mark.parametrize("format_", ["jsonl", "parquet", "arrow", "npz", "safetensors"])
def test_a_disk_that_fills_up_is_one_line(
    format_, small_disk, classifier_bundle, tmp_path, capsys, monkeypatch
):
    """On a real full disk complete shards stay, no partial one does, and with space the run resumes to the same bytes."""
    monkeypatch.setattr("runtime.batch_prediction.job._SHARD_WINDOWS", 2)
    source = tmp_path / "in.npz"
    np.savez(source, x=np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32))
    out = small_disk / "out"

    def run(folder):
        command = ["predict", str(classifier_bundle), str(source), "--out", str(folder), "--raw"]
        return main([*command, "--format", format_, "--device", "cpu"])

    status = run(out)
    shown = capsys.readouterr()
    left = sorted(path.name for path in out.iterdir())
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    run(out)
    run(tmp_path / "whole")

    assert (status, shown.out) == (2, "")
    assert shown.err.splitlines()[-1] == f"error: {out}: No space left on device"
    shards = [f"predictions-{i:05}.{format_}" for i in range(len(left) - 1)]
    assert left == ["metadata.json", *shards]
    assert shards
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


@mark.parametrize("format_", ["jsonl", "parquet", "arrow", "npz", "safetensors"])
def test_writers_pass_on_that_there_is_no_room(format_, classifier):
    """A device that is always full is an error of the system, in every format."""
    written = Written(classifier.signature, OutputFormat(), "key", ())
    rows = np.zeros((50_000, 3), np.float32)
    planned = PlannedRows(np.arange(len(rows)), (), np.arange(0), np.arange(0), ())
    block = ReadBlock("in.npz", len(rows), Rows((), (), {}), range(len(rows)))
    blocks = (block,) if format_ == "jsonl" else ()
    window = ReadyWindow(blocks, 0, Position(), None, planned)

    shard = open_shard(Path("/dev/full"), format_, written)

    def write():
        shard.add(AnsweredWindow(window, (Answers(window.good, (rows,)),)))
        shard.finish()

    with raises(OSError, match="No space left on device") as error:
        write()
    shard.abandon()

    assert error.value.errno == errno.ENOSPC


def test_an_out_that_is_a_file(predict, rows, tmp_path):
    """A file is no folder, and stays."""
    (tmp_path / "out").write_text("mine")

    assert predict(rows) == (
        2,
        "",
        f"error: --out {tmp_path / 'out'}: expected a folder, got a file\n",
    )
    assert (tmp_path / "out").read_text() == "mine"


def test_a_number_that_is_none(predict, rows, capsys):
    """A limit that is no number is refused by the parser."""
    with raises(SystemExit):
        predict(rows, "--limit", "-1")

    assert "argument --limit: expected a number such as 1000, got '-1'" in capsys.readouterr().err


def started(bundle, *arguments, **options):
    """Start the command as a process."""
    command = [sys.executable, "-m", "runtime", "predict", bundle, *arguments, "--device", "cpu"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


@mark.e2e
def test_stdin_is_read_and_cannot_go_on(classifier_bundle, tmp_path):
    """JSONL is read from a pipe; a note says first that such a run cannot be resumed."""
    process = started(
        classifier_bundle,
        "-",
        "--out",
        tmp_path / "out",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    out, err = process.communicate("[1,2,3,4]\n[5,6,7,8]\n")

    assert process.returncode == 0
    assert err.splitlines()[0] == (
        "reading stdin: if this is interrupted it cannot go on, only start again"
    )
    assert out.startswith(f"2 predictions of 2 rows in {tmp_path / 'out'}; ")


@mark.e2e
@mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number, classifier_bundle, tmp_path):
    """No partial file is left, the last line says how to resume, and the exit status is the signal's."""
    process = started(
        classifier_bundle,
        "-",
        "--out",
        tmp_path / "out",
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    lines = iter(process.stderr.readline, "")
    assert any(line.startswith("checked ") for line in lines)
    process.stdin.write("[1,2,3,4]\n")
    process.stdin.flush()
    while not (tmp_path / "out" / "metadata.json").exists():
        os.sched_yield()
    if number == signal.SIGINT:  # a terminal sends it to all of them
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    *_, last = lines

    assert last == (
        f"interrupted; what is complete is in {tmp_path / 'out'}, and the same command goes on from there\n"
    )
    process.stdin.close()
    process.stderr.close()
    assert process.wait() == -number
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metadata.json"]
