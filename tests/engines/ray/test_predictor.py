"""What a predictor does with single batches, as Ray brings them: read-only arrays, and arrays of objects."""

import shutil

import numpy as np
from pytest import mark, raises

from hloserve.ray import HloservePredictor, _visible_device
from runtime.errors import IntegrityError, InvalidInput
from tests import image_files


def objects(values):
    """Return values in an array of objects."""
    out = np.empty(len(values), object)
    out[:] = values
    return out


def test_read_only_arrays_are_taken_as_they_are(predictor, model):
    """A batch of an object store's memory is neither written to nor refused, whatever its size."""
    x = np.random.default_rng(0).normal(size=(75, 2)).astype(np.float32)
    before = x.copy()
    x.flags.writeable = False

    found = predictor("sides")({"x": x})

    expected = model("sides").classify({"x": x})
    assert found["label"].tolist() == [one["label"] for one in expected]
    assert list(found) == ["label", "confidence", "probabilities"]
    assert {len(column) for column in found.values()} == {75}
    np.testing.assert_allclose(found["confidence"], [one["confidence"] for one in expected], 1e-6)
    assert np.array_equal(x, before)


def test_nothing_is_compiled_after_loading(bundles, compilations):
    """Batches of every size run what was compiled when the actor began."""
    predictor = HloservePredictor(bundles / "averages")
    loading = len(compilations)
    for rows in range(10):
        found = predictor({"ids": np.ones((rows, 3), np.int32)})
        assert found["mean"].shape == (rows, 4)

    assert loading > 0
    assert len(compilations) == loading


def test_raw_outputs(predictor):
    """With raw=True an output is as the program writes it."""
    found = predictor("sides", raw=True)({"x": np.array([[3, 1]], np.float32)})

    assert {name: column.tolist() for name, column in found.items()} == {"output": [[2, -2]]}


def test_columns_pass_through_where_asked(predictor):
    """A column that is no input comes back beside the predictions if it is named, and else not."""
    batch = {
        "x": np.zeros((2, 2), np.float32),
        "id": np.array([7, 8]),
        "label": np.array(["a", "b"], object),
        "other": np.zeros(2),
    }
    found = predictor("sides", passthrough=("id", "label"))(batch)

    assert found["id"] is batch["id"]
    assert found["label"] is batch["label"]
    assert list(found) == ["id", "label", "prediction.label", "confidence", "probabilities"]


def test_a_bad_row_is_an_error_of_its_batch(predictor):
    """Without a column of errors a batch with a bad row is refused, and the row named."""
    ids = np.array([[1, 2, 3], [4, 99, 5]], np.int32)

    with raises(InvalidInput) as error:
        predictor("averages")({"ids": ids})

    assert str(error.value) == (
        "batch: expected 2 rows that fit, got 1 that do not; row 1: input 'ids': expected values <= 15, "
        "got 99; with error_column= the others are answered"
    )


def test_a_bad_row_has_an_error_where_asked(predictor, model):
    """With a column of errors the rows beside a bad one are answered as without it."""
    ids = np.array([[1, 2, 3], [4, 99, 5], [6, 7, 8]], np.int32)
    found = predictor("averages", error_column="why")({"ids": ids})

    assert found["why"].tolist() == ["", "input 'ids': expected values <= 15, got 99", ""]
    expected = model("averages").predict({"ids": ids[[0, 2]]})["mean"]
    np.testing.assert_allclose(found["mean"][[0, 2]], expected, rtol=1e-6)
    assert np.isnan(found["mean"][1]).all()
    assert found["mean"].dtype == np.float32


def test_a_batch_of_bad_rows_alone_has_all_columns(predictor):
    """Where no row fits the columns are those of other batches."""
    found = predictor("sides", error_column="error")({"x": objects([np.zeros(3), None])})

    assert list(found) == ["label", "confidence", "probabilities", "error"]
    assert found["label"].tolist() == ["", ""]
    assert found["probabilities"].shape == (2, 2)
    assert found["error"].tolist() == [
        "input 'x': expected float32[_, 2], got float32[1, 3]",
        "input 'x': expected a value, got None",
    ]


def test_lengths_are_mixed(predictor, model):
    """A column of arrays of several lengths is answered as each by itself is."""
    rows = [np.arange(n, dtype=np.int32) for n in (2, 8, 3, 4, 5, 1)]
    found = predictor("averages")({"ids": objects(rows)})

    for row, mean in zip(rows, found["mean"], strict=True):
        alone = model("averages").predict({"ids": row[None]})["mean"][0]
        np.testing.assert_allclose(mean, alone, rtol=1e-5)


def test_numbers_are_converted_as_those_of_files_are(predictor, model):
    """Doubles and wide integers, which Python and pandas make, are taken where they fit, row by row."""
    ids = np.array([[1, 2, 3], [4, 2**40, 5]])
    doubles = np.array([[1.0, 2.0, 3.0], [1.5, 2.0, 3.0]])
    expected = model("averages").predict({"ids": ids[:1].astype(np.int32)})["mean"][0]
    score = predictor("averages", error_column="error")

    for column in (ids, doubles, objects(list(ids)), objects(list(doubles))):
        found = score({"ids": column})
        np.testing.assert_allclose(found["mean"][0], expected, rtol=1e-6)
        assert found["error"].tolist() == [
            "",
            f"input 'ids': expected int32, got {column[1].dtype} with a value that does not fit",
        ]
    [label] = predictor("sides")({"x": np.array([[3.0, 1.0]])})["label"]
    assert label == "left"


def test_texts(predictor, model):
    """Texts come as objects, and one that is too long has an error."""
    texts = objects(["the cat", "the cat sat on a mat the cat sat", "dog ran away"])
    found = predictor("sentences", error_column="error")({"text": texts})

    expected = model("sentences").predict({"text": ["the cat", "dog ran away"]})["mean"]
    assert np.array_equal(found["mean"][[0, 2]], expected)
    assert found["error"].tolist() == ["", "input 'text': expected at most 8 tokens, got 11", ""]


def test_images(predictor, model):
    """Images come as objects, the bytes of a file each."""
    red = image_files.plain(250, 0, 0)
    found = predictor("pictures")({"image": objects([red, red])})

    expected = model("pictures").predict({"image": [red, red]})["mean"]
    assert np.array_equal(found["mean"], expected)


def test_a_missing_column_is_named(predictor):
    """A batch without an input, or without a column that is to pass through, is refused as a whole."""
    with raises(InvalidInput, match=r"^batch: expected a column 'x', got 'y', 'z'$"):
        predictor("sides", error_column="error")({"y": np.zeros(1), "z": np.zeros(1)})
    with raises(InvalidInput, match=r"^batch: expected a column 'id', got 'x'$"):
        predictor("sides", passthrough=("id",))({"x": np.zeros((1, 2), np.float32)})


def test_another_form_of_batches_is_refused(predictor):
    """A batch that is no dict is of another batch_format."""
    with raises(InvalidInput) as error:
        predictor("sides")([1, 2])

    assert str(error.value) == ('batch: expected a dict of arrays, batch_format="numpy", got list')


def test_the_digest_is_required(bundles, tmp_path):
    """An actor does not begin with another bundle than the one that was asked for."""
    shutil.copytree(bundles / "other", tmp_path / "b")

    with raises(IntegrityError, match=r"sha256:"):
        HloservePredictor(tmp_path / "b", require_digest=f"sha256:{'0' * 64}")


@mark.parametrize(
    ("environ", "device"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, "cuda"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f1"}, "cuda"),
    ],
)
def test_the_device_is_the_one_that_ray_gives(environ, device):
    """An actor with a GPU computes there, one without on the CPU, without a silent fallback."""
    assert _visible_device(environ) == device
