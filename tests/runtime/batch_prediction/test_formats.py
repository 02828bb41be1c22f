"""Inputs and outputs that have columns, and folders of texts."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pytest import mark, param, raises
from safetensors.numpy import load_file, save_file

from runtime.batch_prediction.job import Job, Options
from runtime.batch_prediction.output import open_output
from runtime.batch_prediction.sources import SourceError, find_sources
from runtime.batch_prediction.writers import UnwritableError
from tests.image_files import plain
from tests.runtime.batch_prediction.conftest import started

X = np.arange(44, dtype=np.float32).reshape(11, 4)


def as_npz(path, columns):
    """Write an npz file."""
    np.savez(path, **columns)


def as_compressed(path, columns):
    """Write a compressed npz file."""
    np.savez_compressed(path, **columns)


def table(columns):
    """Return columns as lists in a table, in several chunks."""
    whole = pa.table({name: [v.tolist() for v in values] for name, values in columns.items()})
    return pa.concat_tables([whole.slice(0, 3), whole.slice(3)])


def as_parquet(path, columns):
    """Write a Parquet file, doubles and int64 as pandas would."""
    pq.write_table(table(columns), path, row_group_size=5)


def as_arrow(path, columns):
    """Write an Arrow file."""
    made = table(columns)
    with pa.ipc.new_file(path, made.schema) as writer:
        writer.write_table(made)


def as_stream(path, columns):
    """Write an Arrow stream."""
    made = table(columns)
    with pa.ipc.new_stream(path, made.schema) as writer:
        writer.write_table(made)


WRITERS = {
    "npz": ("in.npz", as_npz),
    "compressed": ("in.npz", as_compressed),
    "safetensors": ("in.safetensors", lambda path, columns: save_file(columns, path)),
    "parquet": ("in.parquet", as_parquet),
    "arrow": ("in.arrow", as_arrow),
    "stream": ("in.arrows", as_stream),
}


@mark.usefixtures("small")
@mark.parametrize("kind", WRITERS)
def test_every_format_has_the_answers_of_predict(kind, classifier, job, lines, tmp_path):
    """Columns by the names of inputs are answered row for row, over windows and shards."""
    name, write = WRITERS[kind]
    write(tmp_path / name, {"x": X, "key": np.arange(11) + 100})
    job(classifier, [tmp_path / name])

    assert [line["key"] for line in lines()] == list(range(100, 111))
    assert [line["prediction"]["label"] for line in lines()] == [
        answer["label"] for answer in classifier.classify({"x": X})
    ]


@mark.usefixtures("small")
@mark.parametrize("kind", WRITERS)
def test_every_format_goes_on_at_a_row(kind, classifier, job, lines, tmp_path):
    """A run that was interrupted reads on behind the rows that are written."""
    name, write = WRITERS[kind]
    write(tmp_path / name, {"x": X})

    def stop(rows, *_):
        if rows > 8:
            raise KeyboardInterrupt

    with raises(KeyboardInterrupt):
        job(classifier, [tmp_path / name], on_window=stop)
    job(classifier, [tmp_path / name])
    job(classifier, [tmp_path / name], out=tmp_path / "whole")

    assert [line["row"] for line in lines()] == list(range(11))
    for shard in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


def read_back(path):
    """Return the columns of an output file."""
    if path.suffix == ".npz":
        with np.load(path) as found:
            return {name: found[name].tolist() for name in found}
    if path.suffix == ".safetensors":
        return {name: array.tolist() for name, array in load_file(path).items()}
    opened = pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
    return opened.to_pydict()


@mark.parametrize("format_", ["npz", "parquet", "arrow"])
def test_predictions_as_columns(format_, classifier, job, jsonl, tmp_path):
    """Row, key and fields are columns beside label, confidence and probabilities; refused rows are left out."""
    rows = [{"x": row.tolist(), "key": f"k{i}", "n": i} for i, row in enumerate(X[:3])]
    job(classifier, [jsonl([rows[0], {"x": 1}, *rows[1:]])], format=format_, passed=("n",))

    found = read_back(tmp_path / "out" / f"predictions-00000.{format_}")
    answers = classifier.classify({"x": X[:3]})
    assert list(found) == ["row", "key", "n", "label", "confidence", "probabilities"]
    assert (found["row"], found["key"], found["n"]) == ([0, 2, 3], ["k0", "k1", "k2"], [0, 1, 2])
    assert found["label"] == [answer["label"] for answer in answers]
    assert np.allclose(found["confidence"], [answer["confidence"] for answer in answers])
    assert np.shape(found["probabilities"]) == (3, 3)


@mark.parametrize("format_", ["npz", "parquet", "arrow", "safetensors"])
def test_raw_outputs_keep_every_bit(format_, classifier, job, tmp_path):
    """An output is a column of its own name, equal to what predict returns."""
    np.savez(tmp_path / "in.npz", x=X)
    job(classifier, [tmp_path / "in.npz"], format=format_, raw=True)

    found = read_back(tmp_path / "out" / f"predictions-00000.{format_}")
    assert list(found) == (["row", "output"] if format_ != "safetensors" else ["output", "row"])
    assert found["output"] == classifier.predict({"x": X})["output"].tolist()


@mark.parametrize("format_", ["npz", "parquet", "arrow", "safetensors"])
def test_no_rows_have_the_columns_all_the_same(format_, classifier, job, jsonl, tmp_path):
    """A file without rows is one of the same columns."""
    job(classifier, [jsonl([])], format=format_, raw=True)

    found = read_back(tmp_path / "out" / f"predictions-00000.{format_}")
    assert {name: len(values) for name, values in found.items()} == {"row": 0, "output": 0}


def test_outputs_of_several_lengths(tagger, job, jsonl, tmp_path):
    """Parquet has a list for each row, as long as the row; npz refuses before anything runs."""
    path = jsonl([{"ids": [1] * n} for n in (2, 7, 4)])
    job(tagger, [path], format="parquet")
    with raises(UnwritableError) as error:
        job(tagger, [path], out=tmp_path / "npz", format="npz")

    found = read_back(tmp_path / "out" / "predictions-00000.parquet")
    assert [len(scores) for scores in found["scores"]] == [2, 7, 4]
    assert np.shape(found["mean"]) == (3, 6)
    assert str(error.value) == (
        "--format npz: expected outputs of one shape, got 'scores' float32[_, seq, 2]; use jsonl or parquet"
    )


def test_lists_of_several_lengths_in_parquet(tagger, job, lines, tmp_path):
    """Ragged, null and too long lists are each a matter of their own row."""
    ids = [[1, 2], [3] * 5, None, [1, None], [4], [1] * 9, [10, 1], [2, 2]]
    pq.write_table(pa.table({"ids": ids}), tmp_path / "in.parquet")
    job(tagger, [tmp_path / "in.parquet"])

    assert [(e["file_row"], e["error"]["message"]) for e in lines("errors")] == [
        (2, "input 'ids': expected int32, got null"),
        (3, "input 'ids': expected int32, got null or ragged lists in list<element: int64>"),
        (5, "axis 'seq': expected at most 8, got 9"),
        (6, "input 'ids': expected values <= 9, got 10"),
    ]
    assert [line["row"] for line in lines()] == [0, 1, 4, 7]
    assert [len(line["prediction"]["scores"]) for line in lines()] == [2, 5, 1, 2]


def test_a_column_of_another_type(classifier, job, jsonl, lines, tmp_path):
    """Where a file's column has another type than those before it, each row of it is refused with that."""
    pq.write_table(pa.table({"x": ["a", None]}), tmp_path / "in.parquet")
    job(classifier, [jsonl([X[0].tolist()]), tmp_path / "in.parquet"])

    assert [(e["row"], e["error"]["message"]) for e in lines("errors")] == [
        (1, "input 'x': expected float32, got string"),
        (2, "input 'x': expected float32, got null"),
    ]
    assert len(lines()) == 1


def test_texts_from_parquet(sentences, job, lines, tmp_path):
    """A column of strings, or of UTF-8 in binary, is a raw input; null and other bytes are refused."""
    texts = pa.table({"text": ["cat sat", None, "dog"], "key": [1, 2, 3]})
    bytes_ = pa.table({"text": pa.array([b"cat sat", b"\xff"]), "key": pa.array([4, 5])})
    pq.write_table(texts, tmp_path / "a.parquet")
    pq.write_table(bytes_, tmp_path / "b.parquet")
    job(sentences, [tmp_path / "a.parquet", tmp_path / "b.parquet"])

    assert [line["key"] for line in lines()] == [1, 3, 4]
    assert lines()[0]["prediction"] == lines()[2]["prediction"]
    assert [(e["key"], e["error"]["message"]) for e in lines("errors")] == [
        (2, "input 'text': expected a value, got null"),
        (5, "input 'text': expected a text in UTF-8, got the byte 0xff at 0"),
    ]


def test_a_folder_of_texts(sentences, job, lines, tmp_path):
    """Each file is a row that its name is the key of, in the order of names; markers are no rows."""
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name, data in {
        "b.txt": b"cat sat",
        "a.txt": b"dog",
        "deep/c.txt": b"\xff",
        "_SUCCESS": b"",
        ".hidden": b"",
    }.items():
        (folder / name).write_bytes(data)
    job(sentences, [folder])

    alone = sentences.predict({"text": ["dog"]})["mean"][0]
    assert [line["key"] for line in lines()] == ["a.txt", "b.txt"]
    assert np.allclose(lines()[0]["prediction"], alone, rtol=1e-5)
    assert [(e["key"], e["error"]["message"]) for e in lines("errors")] == [
        ("deep/c.txt", "input 'text': expected a text in UTF-8, got the byte 0xff at 0")
    ]


@mark.parametrize("kind", ["binary", "dictionary", "large"])
def test_images_from_parquet(kind, pictures, job, lines, tmp_path):
    """A column of binary under the name of an image is of files; null, strings and others are refused."""
    red, blue = plain(255, 0, 0), plain(0, 0, 255)
    files = pa.array([red, None, blue], pa.large_binary() if kind == "large" else pa.binary())
    if kind == "dictionary":
        files = files.dictionary_encode()
    pq.write_table(pa.table({"image": files}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": ["red.png"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": pa.array([None], pa.binary())}), tmp_path / "c.parquet")
    job(pictures, [tmp_path / f"{name}.parquet" for name in "abc"])

    assert [(line["row"], line["prediction"]) for line in lines()] == [
        (0, [255, 0, 0]),
        (2, [0, 0, 255]),
    ]
    assert [(e["row"], e["error"]["message"]) for e in lines("errors")] == [
        (1, "input 'image': expected a value, got null"),
        (3, 'input \'image\': expected an image as {"b64": "…"}, got a string'),
        (4, "input 'image': expected a value, got null"),
    ]


def test_pixels_from_parquet(pictures, job, lines, tmp_path):
    """Lists of numbers under the name of an image are its pixels, as before."""
    pixels = [[[9, 8, 7]] * 2] * 2
    pq.write_table(pa.table({"image": [pixels, pixels]}), tmp_path / "a.parquet")
    job(pictures, [tmp_path / "a.parquet"])

    assert [line["prediction"] for line in lines()] == [[9, 8, 7]] * 2


def test_binary_where_a_bundle_takes_tensors_alone(classifier, job, lines, tmp_path):
    """No bytes are taken for the numbers of a tensor."""
    pq.write_table(pa.table({"x": [b"0123"]}), tmp_path / "a.parquet")
    job(classifier, [tmp_path / "a.parquet"])

    assert [e["error"]["message"] for e in lines("errors")] == [
        "input 'x': expected float32, got binary"
    ]


def test_a_folder_of_images(pictures, job, lines, tmp_path):
    """Each file is an image that its name is the key of; one that is none is refused by itself."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(plain(255, 0, 0))
    (folder / "b.jpg").write_bytes(plain(0, 0, 255, "GIF"))
    (folder / "c.webp").write_bytes(plain(0, 255, 0))
    job(pictures, [folder])

    assert [(line["key"], line["prediction"]) for line in lines()] == [
        ("a.png", [255, 0, 0]),
        ("c.webp", [0, 255, 0]),
    ]
    assert [(e["key"], e["error"]["message"]) for e in lines("errors")] == [
        ("b.jpg", "input 'image': expected an image as JPEG, PNG or WebP, got a GIF")
    ]


def test_a_folder_of_shards(classifier, job, lines, tmp_path):
    """What another program wrote as a folder of files is read in the order of their names."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    as_parquet(folder / "part-1.parquet", {"x": X[4:], "key": np.arange(4, 11)})
    as_parquet(folder / "part-0.parquet", {"x": X[:4], "key": np.arange(4)})
    job(classifier, [folder])

    assert [line["key"] for line in lines()] == list(range(11))


FILES = {
    "columns.parquet": (
        lambda path: pq.write_table(pa.table({"y": [1]}), path),
        "expected a column 'x', got 'y'",
    ),
    "cut.npz": (
        lambda path: path.write_bytes(b"PK\x03\x04"),
        "expected npz, got File is not a zip file",
    ),
    "cut.parquet": (lambda path: path.write_bytes(b"PAR1"), None),
    "empty.safetensors": (lambda path: path.touch(), "expected safetensors, got an empty file"),
    "uneven.npz": (
        lambda path: np.savez(path, x=X, key=np.arange(3)),
        "expected columns of as many rows, got 'x' 11, 'key' 3",
    ),
    "objects.npz": (
        lambda path: np.savez(path, allow_pickle=True, x=np.array([{}, []], object)),
        "'x': expected numbers or text, got Python objects, which only pickle reads",
    ),
    "fortran.npz": (
        lambda path: np.savez(path, x=np.asfortranarray(X)),
        "'x': expected C order, got Fortran order; save np.ascontiguousarray of it",
    ),
    "scalar.npz": (
        lambda path: np.savez(path, x=np.float32(1)),
        "'x': expected an array of rows, got a single value",
    ),
    "wide.npz": (
        lambda path: np.savez(path, x=X.astype(np.float64)),
        "column 'x': expected float32[_, 4], got float64[11, 4]",
    ),
    "flat.safetensors": (
        lambda path: save_file({"x": X.reshape(-1)}, path),
        "column 'x': expected float32[_, 4], got float32[44]",
    ),
    "gone.jsonl": (None, "expected a file that can be read, got No such file or directory"),
}


@mark.parametrize("name", FILES)
def test_a_file_that_does_not_fit_is_one_error(name, classifier, jsonl, lines, tmp_path):
    """The files before and behind it are answered; columns that differ and damage are one entry."""
    write, reason = FILES[name]
    path = tmp_path / name
    path.touch()
    if write is not None:
        write(path)
    good = jsonl([X[0].tolist()])
    sources = find_sources([str(good), str(path), str(good)], None)
    if write is None:
        path.unlink()
    with open_output(tmp_path / "out", tmp_path) as output:
        Job(started(classifier), sources, Options()).run(output, tmp_path)

    assert len(lines()) == 2
    [error] = lines("errors")
    assert error["file"] == str(path)
    if reason is not None:
        assert error["error"]["message"] in (f"{path}: {reason}", reason)


def test_bytes_of_another_order_are_read(classifier, job, lines, tmp_path):
    """A big-endian file has the same numbers."""
    np.savez(tmp_path / "in.npz", x=X.astype(">f4"))
    job(classifier, [tmp_path / "in.npz"], raw=True)

    assert np.allclose(
        [line["prediction"] for line in lines()], classifier.predict({"x": X})["output"]
    )


def test_columns_that_are_not_read_are_named(classifier, job, tmp_path):
    """A column that is no input and no field is ignored, and a note names it."""
    np.savez(tmp_path / "in.npz", x=X, y=X, z=X)
    warned = []
    job(classifier, [tmp_path / "in.npz"], warn=warned.append)

    assert warned == [f"{tmp_path / 'in.npz'}: columns that are not read: 'y', 'z'"]


@mark.parametrize(
    ("names", "message"),
    [
        param({}, "input {}: expected a file or a folder with files, got none", id="none"),
        param(
            {"a.txt": "x", "b.jsonl": ""},
            "input {}: expected files of one format, got a.txt as well; pass --input-format",
            id="mixed",
        ),
    ],
)
def test_a_folder_that_is_not_understood(names, message, tmp_path):
    """It is not guessed which of its files are meant."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in names.items():
        (folder / name).write_text(text)
    with raises(SourceError) as error:
        find_sources([str(folder)], None)

    assert str(error.value) == message.format(folder)


def test_a_name_that_is_misspelled(tmp_path):
    """Where there is no such file, the nearest one beside it is named; of an empty folder there is none."""
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    for name, advice in (("row.jsonl", "; did you mean 'rows.jsonl'?"), ("empty", "")):
        with raises(SourceError) as caught:
            find_sources([str(tmp_path / name)], None)

        assert str(caught.value) == (
            f"input {tmp_path / name}: expected a file or a folder with files, got none{advice}"
        )


def test_a_file_of_an_unknown_kind(tmp_path):
    """The suffix of a file's name decides its format, unless an option names it."""
    path = tmp_path / "in.txt"
    path.write_text(json.dumps([1, 2, 3, 4]))
    with raises(SourceError) as error:
        find_sources([str(path)], None)

    assert str(error.value) == (
        f"input {path}: expected a file that ends in .jsonl, .ndjson, .parquet, .arrow, .arrows, .feather, "
        ".ipc, .npz, .safetensors, or a folder, got 'in.txt'; pass --input-format"
    )
    assert [source.format for source in find_sources([str(path)], "jsonl")] == ["jsonl"]


def test_formats_without_their_library(monkeypatch, tmp_path):
    """Where pyarrow is missing a Parquet file is refused in one line with the command to install it."""
    (tmp_path / "in.parquet").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with raises(SourceError) as error:
        find_sources([str(tmp_path / "in.parquet")], None)

    assert str(error.value) == (
        "Parquet and Arrow files: need pyarrow, which is not installed; pip install 'hloserve[parquet]'"
    )
