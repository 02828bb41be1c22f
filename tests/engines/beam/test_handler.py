"""What a handler derives from a bundle, and what it does with single batches."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
from apache_beam.ml.inference.base import KeyedModelHandler
from pytest import fixture, mark, raises

from hloserve.beam import HloserveModelHandler, RefusedRow, raise_refused
from runtime.errors import IntegrityError, InvalidInput
from tests import image_files
from tests.engines.exported import ROOT
from tests.runtime.storage.fake_gcs import BUCKET, FakeGcs

BAD = {
    "nothing": (None, "input 'x': expected a value, got None"),
    "null": ([1.0, None], "input 'x': expected float32, got null"),
    "text": ("no", "input 'x': expected float32, got a string"),
    "bytes": (b"no", "input 'x': expected float32, got bytes"),
    "short": (np.zeros(1, np.float32), "input 'x': expected float32[_, 2], got float32[1, 1]"),
    "wide": (np.zeros(2), "input 'x': expected float32[_, 2], got float64[1, 2]"),
    "name": ({"y": [1, 2]}, "inputs: expected ['x'], got 'y' and no 'x'"),
    "no names": ({}, "input 'x': expected float32[_, 2], got nothing"),
    "numbers as names": ({1: [1, 2]}, "expected names of inputs, got 1 of type int"),
    "object": (object(), "input 'x': expected float32, got object"),
    "nested": ([[1.0], [1.0, 2.0]], "input 'x': expected float32, got lists of different lengths"),
    "large": ([1e39, 1.0], "input 'x': expected float32, got 1e+39"),
}


@fixture(scope="session")
def opened(bundles):
    """A handler of each bundle, and what it loads, by name; each once."""
    found = {}

    def open_(name):
        if name not in found:
            handler = HloserveModelHandler(bundles / name)
            found[name] = (handler, handler.load_model())
        return found[name]

    return open_


def scored(opened, name, rows):
    """Return the inferences of a batch."""
    handler, model = opened(name)
    return [result.inference for result in handler.run_inference(rows, model)]


def test_a_batch_is_the_largest_bucket(bundles):
    """Batches are neither smaller nor larger, as long as there are rows."""
    kwargs = HloserveModelHandler(bundles / "sides").batch_elements_kwargs()

    assert kwargs == {"min_batch_size": 32, "max_batch_size": 32}


def test_rows_of_one_program_are_batched_together(bundles):
    """Where an axis has several sizes a boundary lies behind each: the size itself is the last of its bucket."""
    kwargs = HloserveModelHandler(bundles / "averages").batch_elements_kwargs()
    length = kwargs.pop("length_fn")

    assert kwargs == {
        "min_batch_size": 4,
        "max_batch_size": 4,
        "max_batch_duration_secs": 5,
        "bucket_boundaries": [5, 9],
    }
    row = {"ids": np.zeros(4, np.int32)}
    assert [length(row), length(("key", row)), length([1] * 8), length({"ids": (1, 2)})] == [
        *(4, 4, 8, 2)
    ]
    assert [length(bad) for bad in (None, {}, 7, "text", {"ids": None}, ("k", None))] == [0] * 6


def test_lengths_of_texts_are_estimated(bundles):
    """A longer text is measured as longer, by itself, by name and beside a key."""
    length = HloserveModelHandler(bundles / "sentences").batch_elements_kwargs()["length_fn"]

    assert length("the cat") < length("the cat sat on the mat " * 9)
    assert length({"text": "the cat"}) == length(("key", "the cat")) == length("the cat")


def test_options_of_beam_come_first(bundles):
    """A batch size of the user's own replaces the bundle's; an unknown option is named."""
    handler = HloserveModelHandler(bundles / "sides", max_batch_size=64, model_copies=2)

    assert handler.batch_elements_kwargs() == {"min_batch_size": 64, "max_batch_size": 64}
    assert (handler.share_model_across_processes(), handler.model_copies()) == (True, 2)
    with raises(TypeError, match=r"^options: expected some of .*, got 'batch_size'$"):
        HloserveModelHandler(bundles / "sides", batch_size=64)


def test_one_process_owns_a_gpu(bundles):
    """On a GPU one model serves all processes of a worker, which has a card; elsewhere each has its own."""
    there = HloserveModelHandler(bundles / "sides", device="cuda")
    here = HloserveModelHandler(bundles / "sides", device="cpu")

    assert there.share_model_across_processes()
    assert there.get_resource_hints()["accelerator"].startswith("type:nvidia-l4;count:1")
    assert not here.share_model_across_processes()
    assert here.get_resource_hints() == {}


def test_a_large_bundle_has_a_memory_hint(bundles, monkeypatch):
    """A bundle that does not fit every worker requests its memory; others stay in the stage of their neighbours."""
    monkeypatch.setattr("hloserve.beam._WORKER_BYTES", 0)

    [(hint, size)] = HloserveModelHandler(bundles / "sides").get_resource_hints().items()

    assert hint == "min_ram"
    assert 2 << 30 < size < 3 << 30


def test_what_is_pickled_is_a_place_and_a_digest(bundles):
    """A pickled handler is small, and to read one takes neither jax nor the bundle."""
    data = pickle.dumps(HloserveModelHandler(bundles / "averages"))
    code = (
        "import pickle, sys; handler = pickle.load(sys.stdin.buffer); "
        "print('jax' in sys.modules, handler._bundle, handler._digest[:7])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=data, capture_output=True)

    assert len(data) < 1500
    assert done.stdout.decode().split() == ["False", str(bundles / "averages"), "sha256:"], (
        done.stderr
    )


def test_a_bundle_that_was_replaced_is_not_loaded(bundles, tmp_path):
    """Workers expect the bundle that the pipeline was made with."""
    shutil.copytree(bundles / "sides", tmp_path / "b")
    handler = HloserveModelHandler(tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
    shutil.copytree(bundles / "other", tmp_path / "b")

    with raises(IntegrityError, match=r"sha256:"):
        handler.load_model()


def test_nothing_is_compiled_after_loading(bundles, compilations):
    """Batches of every size and length run what was compiled before."""
    handler = HloserveModelHandler(bundles / "averages")
    model = handler.load_model()
    loading = len(compilations)
    for rows in range(1, 10):
        batch = [np.ones(1 + i % 8, np.int32) for i in range(rows)]
        assert len(handler.run_inference(batch, model)) == rows

    assert loading > 0
    assert len(compilations) == loading


def test_predictions_are_those_of_the_model(opened, model):
    """Each row has the label, the confidence and the probabilities that `classify` has."""
    rows = np.random.default_rng(0).normal(size=(70, 2)).astype(np.float32)
    expected = model("sides").classify({"x": rows})

    found = scored(opened, "sides", [{"x": row} for row in rows])

    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert {type(one["label"]) for one in found} == {str}
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["confidence"], wanted["confidence"], rtol=1e-6)
        np.testing.assert_allclose(
            one["probabilities"], list(wanted["probabilities"].values()), rtol=1e-6
        )


def test_raw_outputs(bundles):
    """With raw=True an output is as the program writes it."""
    handler = HloserveModelHandler(bundles / "sides", raw=True)
    [result] = handler.run_inference([{"x": [3, 1]}], handler.load_model())

    assert list(result.inference) == ["output"]
    assert result.inference["output"].tolist() == [2, -2]


@mark.parametrize("kind", BAD)
def test_a_bad_row_fails_by_itself(kind, opened):
    """A row that does not fit has its error, and the rows beside it their predictions."""
    bad, why = BAD[kind]
    found = scored(opened, "sides", [[3, 1], bad, {"x": [1, 2]}])

    assert [type(one) for one in found] == [dict, RefusedRow, dict]
    assert found[1].error == why
    assert [found[0]["label"], found[2]["label"]] == ["left", "right"]


def test_forms_of_rows_stand_beside_each_other(opened):
    """Arrays, lists, tuples in a mapping, and rows without names have the same predictions."""
    rows = [
        *({"x": [3, 1]}, {"x": (3.0, 1.0)}, [3, 1], np.array([3, 1], np.float32)),
        {"x": np.array([3, 1], np.float32)},
    ]
    found = scored(opened, "sides", rows)

    assert len({(one["label"], float(one["confidence"])) for one in found}) == 1


def test_lengths_are_mixed(opened, model):
    """Rows of several lengths are answered as each by itself is."""
    rows = [np.arange(n, dtype=np.int32) for n in (2, 8, 3, 4, 5, 9, 1)]
    found = scored(opened, "averages", rows)

    assert found[5] == RefusedRow("axis 'seq': expected at most 8, got 9")
    for row, one in zip(rows, found, strict=True):
        if len(row) != 9:
            alone = model("averages").predict({"ids": row[None]})
            np.testing.assert_allclose(one["mean"], alone["mean"][0], rtol=1e-5)


def test_texts(opened, model):
    """A text is a row by itself or by its name; one that is too long is refused."""
    long = "the cat sat on a mat the cat sat"
    found = scored(
        opened, "sentences", ["the cat", {"text": "dog ran away"}, long, 7, {"text": None}]
    )

    expected = model("sentences").predict({"text": ["the cat", "dog ran away"]})["mean"]
    assert np.array_equal([found[0]["mean"], found[1]["mean"]], expected)
    assert found[2] == RefusedRow("input 'text': expected at most 8 tokens, got 11")
    assert [type(one) for one in found[3:]] == [RefusedRow] * 2


def test_ids_beside_texts(opened):
    """A bundle of texts takes tensors as well, in the same batch."""
    ids = np.array([2, 4, 5, 3], np.int32)
    found = scored(opened, "sentences", [{"input_ids": ids}, "the cat"])

    assert np.array_equal(found[0]["mean"], found[1]["mean"])


def test_images(opened, model):
    """An image is the bytes of a file; a file that is none is refused."""
    red = image_files.plain(250, 0, 0)
    found = scored(opened, "pictures", [{"image": red}, red, b"no image", {"image": "red.png"}])

    expected = model("pictures").predict({"image": [red]})["mean"][0]
    assert np.array_equal(found[0]["mean"], expected)
    assert np.array_equal(found[1]["mean"], expected)
    assert found[3] == RefusedRow("input 'image': expected the bytes of an image, got str")
    assert found[2].error.startswith("input 'image': expected ")


def test_results_name_their_bundle(opened):
    """A result has its row, and the digest of the bundle that made it."""
    handler, model = opened("sides")
    row = {"x": [3, 1]}
    [result] = handler.run_inference([row], model)

    assert result.example is row
    assert result.model_id == f"sha256:{model.model.bundle.digest}"


def test_another_path_is_another_bundle(bundles):
    """After `update_model_path` the next load is of that bundle, of whatever digest; the same path changes nothing."""
    handler = HloserveModelHandler(bundles / "sides")
    before = handler._digest
    handler.update_model_path(None)
    handler.update_model_path(str(bundles / "sides"))
    assert handler._digest == before

    handler.update_model_path(str(bundles / "other"))
    [result] = handler.run_inference([[3, 1]], handler.load_model())

    assert result.inference["label"] == "right"
    assert result.model_id != before


def test_bytes_are_counted_without_pickling(bundles):
    """The size of a batch is that of its values."""
    handler = HloserveModelHandler(bundles / "sides")
    batch = [{"x": np.zeros(2, np.float32)}, {"x": [1, 2]}, "text", {"image": b"123"}]

    assert handler.get_num_bytes(batch) == 8 + 16 + 4 + 3
    assert KeyedModelHandler(handler).get_num_bytes([("k", batch[0])]) > 8


def test_arguments_of_inference_are_refused(bundles):
    """A program takes inputs only."""
    handler = HloserveModelHandler(bundles / "sides")
    handler.validate_inference_args(None)

    with raises(ValueError, match=r"^inference_args: expected none, got temperature$"):
        handler.validate_inference_args({"temperature": 1})


def test_a_refused_row_becomes_an_error(opened):
    """`raise_refused` passes answered rows on, with keys and without, and raises for others."""
    handler, model = opened("sides")
    good, bad = handler.run_inference([[3, 1], [None, 1]], model)

    assert raise_refused(good) is good
    assert raise_refused(("key", good)) == ("key", good)
    for result in (bad, ("key", bad)):
        with raises(InvalidInput, match=r"^input 'x': expected float32, got null$"):
            raise_refused(result)


def test_a_bundle_in_cloud_storage(bundles, monkeypatch):
    """A bundle of gs:// is read where the pipeline is made, and downloaded where it runs."""
    bucket = FakeGcs()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    try:
        bucket.upload(bundles / "sides", "scoring/sides")
        handler = HloserveModelHandler(f"gs://{BUCKET}/scoring/sides")
        [result] = handler.run_inference([[3, 1]], handler.load_model())
    finally:
        bucket.close()

    assert handler._digest == HloserveModelHandler(bundles / "sides")._digest
    assert result.inference["label"] == "left"
