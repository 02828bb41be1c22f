"""EfficientNet-Lite0 in nnx: its real weights, exported, on real images."""

import io
import pickle
import re
from pathlib import Path

import numpy as np
from flax import nnx
from pytest import fixture, mark, raises

from examples.efficientnet import model as example
from examples.efficientnet.classify import find, prepared, probabilities
from examples.efficientnet.weights import convert, published, read
from runtime import load

README = Path(example.__file__).with_name("README.md").read_text()
SAMPLES = ("flower.jpg", "china.jpg")
DAISY, PALACE = 985, 698


@fixture(scope="module")
def images():
    """The sample images, uint8[2, 224, 224, 3]."""
    return np.stack([prepared(find(name)) for name in SAMPLES])


@fixture(scope="module")
def bundle(run, tmp_path_factory):
    """Export with the public command line, in one bucket."""
    out = tmp_path_factory.mktemp("efficientnet") / "bundle"
    run("export", "examples/efficientnet/model.py:spec", "--buckets", "2", "--out", out)
    return out


@mark.e2e
def test_images_get_the_classes_that_the_readme_shows(run, bundle):
    """The samples are a daisy and a palace, with the probabilities of the README."""
    printed = run("examples.efficientnet.classify", bundle, *SAMPLES).stdout

    assert f"```\n{printed}```" in README
    best = [int(re.search(r": +(\d+)", line)[1]) for line in printed.splitlines()]
    assert best == [DAISY, PALACE]


@mark.e2e
def test_the_bundle_answers_as_the_model_does(bundle, images):
    """The bundle's probabilities are those of the nnx model in evaluation mode."""
    model = example.pretrained()
    model.eval()
    expected = np.asarray(nnx.jit(lambda net, x: nnx.softmax(net(x)))(model, images))

    np.testing.assert_allclose(
        probabilities(load(bundle, "cpu"), images), expected, rtol=1e-3, atol=1e-5
    )


def test_every_published_array_has_a_place():
    """All weights and statistics are used, but for the counters of batches seen."""
    with published().open("rb") as file:
        arrays = read(file)
    counters = [name for name in arrays if name.endswith("num_batches_tracked")]

    assert len(convert(arrays)) == len(arrays) - len(counters)


def test_nothing_but_arrays_is_unpickled():
    """A file of weights that names a function of the system is refused, and the function not run."""
    file = io.BytesIO()
    for part in (0, 1001, {}, {"x": print}):
        pickle.dump(part, file, protocol=2)
    file.seek(0)

    with raises(pickle.UnpicklingError, match=r"^expected arrays alone, got __builtin__\.print$"):
        read(file)


def test_other_weights_are_refused(monkeypatch):
    """Weights of another shape end the making of the model, by their name."""
    real = example.convert

    def cut(arrays):
        return {**real(arrays), "classes/bias": np.zeros(10, np.float32)}

    monkeypatch.setattr(example, "convert", cut)

    with raises(ValueError, match=r"^classes/bias: expected \(1000,\), got \(10,\)$"):
        example.pretrained()
