"""The digits example: trained, exported and asked as its README says."""

import json
import re

import jax
import numpy as np
from PIL import Image
from pytest import approx, fixture, mark

from examples.digits.model import DigitClassifier
from examples.digits.train import digits, save
from export.checkpoints import read_params
from runtime import load
from runtime.records.instances import read_rows
from runtime.records.predictions import formatted
from runtime.tensors import read_tensors
from tests.image_files import saved


@fixture(scope="module")
def trained(run, tmp_path_factory):
    """Train once; the output directory, with what was printed in `printed.txt`."""
    out = tmp_path_factory.mktemp("digits")
    (out / "printed.txt").write_text(run("examples.digits.train", "--out", out).stdout)
    return out


@fixture(scope="module")
def model(run, trained):
    """Export with the public command line, and load."""
    run(
        *("export", "examples/digits/model.py:spec", "--params", trained / "checkpoint"),
        *("--golden", trained / "golden.npz", "--buckets", "1,32", "--out", trained / "bundle"),
    )
    return load(trained / "bundle", "cpu")


@fixture(scope="module")
def held_out():
    """Images and labels that training never saw."""
    return digits()[1]


def printed_accuracy(trained):
    """Read the accuracy that training printed."""
    return float(re.search(r"held-out accuracy ([\d.]+)", (trained / "printed.txt").read_text())[1])


@mark.e2e
def test_training_reaches_its_accuracy(trained):
    """The model classifies at least 97 of 100 held-out digits correctly, and training prints that."""
    assert printed_accuracy(trained) >= 0.97


def test_training_and_held_out_digits_are_different_ones():
    """No digit is both trained on and held out, and none is lost."""
    (images, labels), (held_images, held_labels) = digits()

    assert (len(images), len(labels)) == (1437, 1437)
    assert (len(held_images), len(held_labels)) == (360, 360)
    assert not {i.tobytes() for i in images} & {i.tobytes() for i in held_images}


@mark.e2e
def test_the_bundle_is_as_accurate_as_the_model(trained, model, held_out):
    """The bundle classifies each held-out digit as the trained model does, with the accuracy that was printed."""
    images, labels = held_out
    params = read_params(trained / "checkpoint")
    expected = np.asarray(jax.jit(DigitClassifier().apply)(params, images))

    got = model.predict({"image": images})["output"]

    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert (got.argmax(axis=-1) == expected.argmax(axis=-1)).all()
    assert (got.argmax(axis=-1) == labels).mean() == approx(printed_accuracy(trained), abs=5e-5)


@mark.e2e
def test_the_saved_request_is_answered_with_its_label(trained, model):
    """The request that training leaves for curl is a held-out digit; the bundle reads it right."""
    body = json.loads((trained / "request.json").read_text())
    (part,) = read_rows(body["instances"], model)
    names = [spec.name for spec in model.signature.inputs]

    outputs = model.predict(dict(zip(names, part.arrays, strict=True)))

    (answer,) = formatted(
        outputs["output"], model.signature.outputs[0], model.manifest.output_format
    )
    assert answer["label"] == (trained / "label.txt").read_text().strip()
    assert list(answer["probabilities"]) == list("0123456789")


@mark.e2e
def test_goldens_are_the_digits_that_training_left(model, held_out):
    """Behind images that are drawn, every device is compared with real held-out digits."""
    images, golden = model.manifest.goldens
    assert (images.raw is None, golden.raw) == (False, None)
    path = model.bundle.path / golden.file.path

    image = read_tensors(path, path.read_bytes())["input/image"]

    np.testing.assert_array_equal(image, held_out[0][1:65])


@mark.e2e
def test_a_drawing_is_read_as_its_digit(model, held_out):
    """A picture of a digit, of any size and in white on black, is the digit itself to the model."""
    images, _ = held_out
    large = [
        Image.fromarray(digit).resize((280, 280), Image.Resampling.BOX) for digit in images[:50]
    ]

    answers = model.classify({"image": [saved(picture) for picture in large]})

    expected = model.classify({"image": images[:50]})
    agreeing = sum(a["label"] == e["label"] for a, e in zip(answers, expected, strict=True))
    assert agreeing >= 48


def test_saving_again_replaces_what_was_left(tmp_path, held_out):
    """A second run may write where a first one did; the newer params are what is read."""
    for value in (1, 2):
        save(tmp_path, {"params": {"bias": np.full(3, value, np.float32)}}, held_out)

    params = read_params(tmp_path / "checkpoint")

    assert params["params"]["bias"].tolist() == [2, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("checkpoint", "golden.npz", "label.txt", "request.json"),
    ]
