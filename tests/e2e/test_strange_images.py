"""Untrusted image files sent to a real server: each is answered or refused, and its neighbours are answered correctly.

The number of files of a kind is small here; HLOSERVE_STRANGE_IMAGES=300 sends as many.
"""

import base64
import concurrent.futures
import json
import os
import urllib.request

import numpy as np
from pytest import fixture, mark

import export
from export import Image
from tests.image_files import STRANGE, plain, png_bomb, strange
from tests.serving import TIMEOUT_S, serving

pytestmark = mark.e2e

COUNT = int(os.environ.get("HLOSERVE_STRANGE_IMAGES", "6"))
GOOD = plain(200, 100, 50)
MEANS = [200.0, 100.0, 50.0]
INTERNAL = ("Traceback", 'File "', ".py", "PIL", "site-packages", "<html")


def means(_, image):
    """Return the mean of each channel."""
    return image.mean(axis=(1, 2))


@fixture(scope="module")
def server(tmp_path_factory):
    """A server of images to the means of their channels; buckets 1, 2 and 8."""
    out = tmp_path_factory.mktemp("bundle") / "b"
    export.export_model(
        means,
        {},
        inputs=["image:float32[_,16,16,3]"],
        buckets=(1, 2, 8),
        platforms="cpu",
        preprocess=[Image("image", 16)],
        out=out,
    )
    with serving("--bundle", str(out)) as served:
        yield served


def b64(data):
    """Return a file in JSON."""
    return {"b64": base64.b64encode(data).decode()}


def expect_right(server, data):
    """Send a file with good ones around it, while another client sends a good one by itself."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(server.post, {"instances": [b64(GOOD)]})
        status, answer = server.post({"instances": [b64(GOOD), b64(data), b64(GOOD)]})
    if status == 200:
        rows = np.array(answer["predictions"], np.float64)
        assert rows.shape == (3, 3)
        assert ((rows >= 0) & (rows <= 255)).all()
        np.testing.assert_allclose(rows[[0, -1]], [MEANS, MEANS], atol=0.01)
    else:
        assert (status, answer["code"]) == (400, "invalid_argument"), answer
        assert answer["error"].startswith("instances[1]: input 'image': expected "), answer
        assert not any(word in json.dumps(answer) for word in INTERNAL)
    status, answer = neighbour.result()
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], [MEANS], atol=0.01)


@mark.parametrize("kind", STRANGE)
def test_strange_files_are_answered_or_refused(server, kind):
    """Whatever a file holds, its request is answered or refused, and those beside it get their own answers."""
    for data in strange(kind, COUNT):
        expect_right(server, data)


def test_a_bomb_costs_what_its_header_says(server):
    """A PNG of 26 megapixels in 80 kB is refused, and one of 25 is decoded within the budget."""
    expect_right(server, png_bomb(5100, 5100))
    expect_right(server, png_bomb(5000, 5000))


def test_wrong_names_and_types_do_not_matter(server):
    """A file's type follows from its first bytes, not from its name or declared type."""
    headers = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(f"{server.url}/predict", plain(1, 2, 3), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
        rows = json.loads(answer.read())["predictions"]
    assert np.round(rows).tolist() == [[1, 2, 3]]
