"""The bundle that the guides are about."""

import numpy as np
from pytest import fixture

IMAGE = "us-central1-docker.pkg.dev/p/r/hloserve:cpu"


@fixture(scope="session")
def iris_bundle(exported):
    """The bundle of the serving guide: x float32[_, 4] to three species."""
    weights = [[-0.4, 0.5, -0.1], [1.0, -0.3, -0.7], [-2.5, -0.2, 2.7], [-1.1, -0.9, 2.0]]
    return exported(
        "iris",
        lambda params, x: x @ params["weights"] + params["bias"],
        {"weights": np.array(weights, np.float32), "bias": np.array([9.8, 2.2, -12.1], np.float32)},
        inputs=["x:float32[_,4]"],
        output="classification:logits",
        labels=["setosa", "versicolor", "virginica"],
    )


@fixture
def argv(classifier_bundle):
    """The smallest configuration that is required."""
    return [
        *("--bundle", str(classifier_bundle), "--to", "gs://models/a"),
        *("--image", IMAGE, "--project", "p", "--region", "us-central1"),
    ]
