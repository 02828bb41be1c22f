"""The digits in each framework: trained, exported and asked as the README says."""

import re

import numpy as np
from pytest import approx, mark

from examples.digits.train import digits
from examples.frameworks.train import FRAMEWORKS
from runtime import load


@mark.e2e
@mark.parametrize("framework", FRAMEWORKS)
def test_the_bundle_is_as_accurate_as_the_model(run, tmp_path, framework):
    """A network is trained to 97 of 100 held-out digits, and its bundle has the same accuracy."""
    images, labels = digits()[1]

    done = run("examples.frameworks.train", framework, "--out", tmp_path / "bundle")

    accuracy = float(re.search(r"held-out accuracy ([\d.]+)", done.stdout)[1])
    assert accuracy >= 0.97
    model = load(tmp_path / "bundle", "cpu")
    (scores,) = model.predict({"image": images.astype(np.float32)}).values()
    assert (scores.argmax(axis=-1) == labels).mean() == approx(accuracy, abs=5e-5)
