"""The server as a process: real sockets, real signals, a real bundle."""

import json
import socket
import urllib.request

import jax.numpy as jnp
import numpy as np
from pytest import fixture, mark

from export import export_model
from runtime import load
from tests.altered_bundles import with_other_golden
from tests.serving import TIMEOUT_S, free_port, post, serving, start

pytestmark = mark.e2e


def classify(params, image, scale):
    """Score images: a function of two inputs."""
    return jnp.tanh(image.reshape(image.shape[0], -1) @ params["w"]) * scale[:, None]


@fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of a two-input classifier."""
    out = tmp_path_factory.mktemp("serve") / "bundle"
    weights = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    export_model(
        classify,
        {"w": weights},
        inputs=["image:float32[_,2,3]", "scale:float32[_]"],
        buckets=(1, 4),
        platforms=("cpu",),
        output="classification:logits",
        labels=["red", "green", "blue"],
        name="colours",
        out=out,
    )
    return out


@fixture(scope="module")
def server(bundle):
    """A running server, as Vertex AI would configure it; its address."""
    environ = {
        "AIP_STORAGE_URI": str(bundle),
        "AIP_PREDICT_ROUTE": "/v1/e/1/deployedModels/2:predict",
        "AIP_HEALTH_ROUTE": "/v1/e/1/deployedModels/2",
    }
    with serving(**environ) as served:
        yield served.url


def test_an_answer_over_http_matches_the_model(server, bundle):
    """Predictions over HTTP equal those of `predict`, with labels."""
    rng = np.random.default_rng(1)
    image = rng.standard_normal((5, 2, 3)).astype(np.float32)
    scale = np.ones(5, np.float32)
    instances = [
        {"image": i.tolist(), "scale": float(s)} for i, s in zip(image, scale, strict=True)
    ]

    status, body = post(
        f"{server}/v1/e/1/deployedModels/2:predict",
        json.dumps({"instances": instances, "parameters": {}}).encode(),
    )

    logits = load(bundle).predict({"image": image, "scale": scale})["output"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponents / exponents.sum(axis=1, keepdims=True)
    got = [[p["probabilities"][c] for c in ("red", "green", "blue")] for p in body["predictions"]]
    assert status == 200
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    best = [("red", "green", "blue")[i] for i in expected.argmax(axis=1)]
    assert [p["label"] for p in body["predictions"]] == best


def test_health_and_errors_over_http(server):
    """The health route returns 200, a bad body 400, an unknown path 404, all in JSON."""
    with urllib.request.urlopen(f"{server}/v1/e/1/deployedModels/2", timeout=TIMEOUT_S) as answer:  # noqa: S310
        assert json.loads(answer.read()) == {"status": "ready"}

    assert post(f"{server}/v1/e/1/deployedModels/2:predict", b"{}")[0] == 400
    assert post(f"{server}/nothing", b"{}")[0] == 404


def test_a_bundle_that_does_not_fit_ends_the_process_with_one_line(tmp_path):
    """A missing bundle is exit status 3 and one line on stderr."""
    process = start(free_port(), "--bundle", str(tmp_path / "nothing"))

    _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 3
    assert (
        errors.strip()
        == f"error: bundle {tmp_path}/nothing: expected a directory, got nothing there"
    )


def test_a_taken_port_ends_the_process(bundle):
    """A port that is taken is exit status 2, not a silently shared port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(taken.getsockname()[1], "--bundle", str(bundle))
        _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 2
    assert "Address already in use" in errors


def test_goldens_that_do_not_match_end_the_process(bundle, tmp_path):
    """A bundle whose goldens this device does not reproduce is never ready: exit status 4."""
    forged = with_other_golden(bundle, tmp_path / "forged")

    process = start(free_port(), "--bundle", str(forged))
    _, errors = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 4
    assert "golden checks failed on this device" in errors
