"""Inputs from Cloud Storage, and predictions into it, through Google's client."""

import json

import numpy as np
from pytest import fixture, mark, raises

from runtime.batch_prediction.output import OutputError
from runtime.storage.store import FetchError
from tests.runtime.storage.fake_gcs import BUCKET, FakeGcs, Status

X = [[float(i), 0.0, 1.0, 2.0] for i in range(11)]
OUT = f"gs://{BUCKET}/out"


@fixture
def bucket(monkeypatch):
    """A bucket with eleven rows in two files, and one of another prefix."""
    bucket = FakeGcs()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    monkeypatch.setattr("time.sleep", lambda _: None)
    for name, rows in (("in/a.jsonl", X[:4]), ("in/b.jsonl", X[4:]), ("inner/c.jsonl", X)):
        bucket.put(name, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    yield bucket
    bucket.close()


def written(bucket, prefix="out/"):
    """Return the objects below a prefix, but for the record."""
    return {
        name: data
        for name, (data, _) in bucket.objects.items()
        if name.startswith(prefix) and not name.endswith("metadata.json")
    }


def test_a_folder_of_objects_into_a_folder(bucket, classifier, job, tmp_path):
    """Objects below the folder are read in order, and predictions are objects of the output folder."""
    progress = job(classifier, [f"gs://{BUCKET}/in"], out=OUT)

    [(name, data)] = written(bucket).items()
    assert name == "out/predictions-00000.jsonl"
    assert [json.loads(line)["instance"] for line in data.splitlines()] == X
    assert json.loads(bucket.objects["out/metadata.json"][0])["progress"]["complete"]
    assert progress.predictions == 11
    assert list((tmp_path / "scratch").iterdir()) == []


@mark.usefixtures("bucket")
def test_one_object(classifier, job, lines):
    """An object is named as a file is, and its predictions may go to this machine."""
    job(classifier, [f"gs://{BUCKET}/in/b.jsonl"])

    assert [line["instance"] for line in lines()] == X[4:]


def test_a_folder_of_texts(bucket, sentences, job, lines, tmp_path):
    """Each object is a row, and no copy is left."""
    bucket.put("texts/a.txt", b"cat sat")
    bucket.put("texts/b.txt", b"dog")
    job(sentences, [f"gs://{BUCKET}/texts"])

    assert [line["key"] for line in lines()] == ["a.txt", "b.txt"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_object_that_is_not_there(bucket, classifier, job):
    """A name of nothing is refused before anything is written."""
    with raises(Exception, match="expected a file or a folder with files, got none"):
        job(classifier, [f"gs://{BUCKET}/gone"], out=OUT)

    assert bucket.uploaded == []


@mark.usefixtures("small")
def test_an_interrupted_run_goes_on(bucket, classifier, job):
    """It begins behind the last shard of the record, and leaves the objects of a run that was not."""

    def stop(rows, *_):
        if rows > 8:
            raise KeyboardInterrupt

    source = [f"gs://{BUCKET}/in"]
    with raises(KeyboardInterrupt):
        job(classifier, source, out=OUT, on_window=stop)
    assert list(written(bucket)) == ["out/predictions-00000.jsonl"]
    job(classifier, source, out=OUT)
    job(classifier, source, out=f"gs://{BUCKET}/whole")

    whole = written(bucket, "whole/")
    assert written(bucket) == {n.replace("whole/", "out/"): data for n, data in whole.items()}
    assert len(whole) == 2


@mark.usefixtures("small")
def test_overwriting_removes_what_is_no_more(bucket, classifier, job):
    """Shards of a longer run go."""
    job(classifier, [f"gs://{BUCKET}/in"], out=OUT)
    job(classifier, [f"gs://{BUCKET}/in/a.jsonl"], out=OUT, overwrite=True)

    assert list(written(bucket)) == ["out/predictions-00000.jsonl"]


@mark.usefixtures("small")
def test_two_runs_do_not_share_a_folder(bucket, classifier, job):
    """The one whose record was replaced by another ends in one line."""

    def intrude(rows, *_):
        if rows == 4:
            data, _ = bucket.objects["out/metadata.json"]
            bucket.put("out/metadata.json", data + b" ")

    with raises(OutputError) as error:
        job(classifier, [f"gs://{BUCKET}/in"], out=OUT, on_window=intrude)

    assert str(error.value) == (
        f"--out {OUT}: expected a folder that no other run writes, got one that is being written; wait for "
        "that run, or take another folder"
    )


def test_an_upload_that_fails_is_tried_again(bucket, classifier, job):
    """A store that is busy for a moment, or whose response is lost, costs no row."""
    name = "out/predictions-00000.jsonl"
    bucket.before[f"upload of {name}"] = [lambda: Status(503), lambda: "no response"]
    bucket.before["upload of out/metadata.json"] = [lambda: "no response"]
    job(classifier, [f"gs://{BUCKET}/in"], out=OUT)

    assert len(written(bucket)[name].splitlines()) == 11


def test_an_account_that_may_not_write(bucket, classifier, job):
    """The line names the object and the role that is missing."""
    bucket.before["upload of out/metadata.json"] = [lambda: Status(403)]
    with raises(FetchError) as error:
        job(classifier, [f"gs://{BUCKET}/in"], out=OUT)

    assert str(error.value) == (
        f"{OUT}/metadata.json: 403 as scripted; give the account that writes it the role Storage Object User "
        "on the bucket"
    )


def test_columns_from_the_cloud(bucket, classifier, job, lines, tmp_path):
    """A file with columns is copied here whole, and removed."""
    np.savez(tmp_path / "x.npz", x=np.array(X, np.float32))
    bucket.put("x.npz", (tmp_path / "x.npz").read_bytes())
    job(classifier, [f"gs://{BUCKET}/x.npz"])

    assert [line["row"] for line in lines()] == list(range(11))
    assert list((tmp_path / "scratch").iterdir()) == []
