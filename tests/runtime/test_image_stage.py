"""The stage of images in a manifest: what it can say, and what it has to fit."""

import json

from pytest import mark

from runtime.manifest import Manifest
from tests.runtime.test_manifest import refusal
from tests.runtime.test_manifest_formats import STAGE, with_texts

IMAGE = {
    "kind": "image",
    "input": "image",
    "size": [4, 6],
    "resize": "exact",
    "interpolation": "bilinear",
    "antialias": True,
    "channels": "RGB",
    "max_pixels": 1000,
    "max_bytes": 100,
}


def with_images(value, changes, shape=("_", 4, 6, 3), **spec):
    """
    Return a manifest with an image input, and a stage that makes it.
    """
    pixels = {"name": "image", "dtype": "uint8", "shape": list(shape)} | spec
    value["signature"]["inputs"].append(pixels)
    return with_texts(value, STAGE, IMAGE | changes)


@mark.parametrize(
    ("changes", "shape"),
    [
        ({}, ("_", 4, 6, 3)),
        ({"channels": "L"}, ("_", 4, 6)),
        ({"channels": "L", "interpolation": "lanczos3", "antialias": False}, ("_", 4, 6, 1)),
        ({"resize": "shortest", "resize_to": 9}, ("_", 4, 6, 3)),
        ({"resize": "letterbox"}, ("_", 4, 6, 3)),
    ],
)
def test_images_are_of_format_4(value, changes, shape):
    """
    A bundle that takes images, beside texts, is read and written again.
    """
    data = json.dumps(with_images(value, changes, shape)).encode()

    manifest = Manifest.from_bytes(data)

    stage = manifest.preprocess[1]
    assert stage.raw_names == stage.made == ("image",)
    assert json.loads(manifest.to_bytes())["preprocess"][1] == IMAGE | changes
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"size": [4]}, {}, "expected height and width, got 1 sizes at $.preprocess[1].size"),
        ({"size": [0, 6]}, {}, "expected sides of 1 to 65535, got [0, 6] at $.preprocess[1].size"),
        (
            {"size": [6, 4]},
            {},
            "expected uint8[_, 6, 4, 3], got uint8[_, 4, 6, 3] at $.preprocess[1].input",
        ),
        (
            {"channels": "L"},
            {},
            (
                "expected uint8[_, 4, 6, 1] or uint8[_, 4, 6], got uint8[_, 4, 6, 3] at "
                "$.preprocess[1].input"
            ),
        ),
        (
            {},
            {"dtype": "float32"},
            "expected uint8[_, 4, 6, 3], got float32[_, 4, 6, 3] at $.preprocess[1].input",
        ),
        (
            {},
            {"maximum": 16},
            "expected values of 0 to 255, got None to 16 at $.preprocess[1].input",
        ),
        (
            {"input": "other"},
            {},
            "expected one of ids, mask, image, got 'other' at $.preprocess[1].input",
        ),
        (
            {"input": "ids"},
            {},
            "expected uint8[_, 4, 6, 3], got int32[_, seq] at $.preprocess[1].input",
        ),
        (
            {"input": "text"},
            {},
            "expected a name that no other input has, got 'text' at $.preprocess[1].input",
        ),
        (
            {"resize_to": 9},
            {},
            (
                "expected 6 to 65535, and resize 'shortest', got 9 and 'exact' at "
                "$.preprocess[1].resize_to"
            ),
        ),
        (
            {"resize": "shortest", "resize_to": 5},
            {},
            (
                "expected 6 to 65535, and resize 'shortest', got 5 and 'shortest' at "
                "$.preprocess[1].resize_to"
            ),
        ),
        (
            {"resize": "crop"},
            {},
            "expected 'exact' or 'shortest' or 'letterbox', got 'crop' at $.preprocess[1].resize",
        ),
        ({"max_pixels": 0}, {}, "expected at least 1, got 0 at $.preprocess[1].max_pixels"),
        ({"max_bytes": 0}, {}, "expected at least 1, got 0 at $.preprocess[1].max_bytes"),
        ({"url": "x"}, {}, "unknown key 'url' at $.preprocess[1]"),
    ],
)
def test_image_stages_fit_the_signature(value, changes, spec, message):
    """
    A stage of images makes an input that is there, of bytes and of its size.
    """
    data = json.dumps(with_images(value, changes, **spec)).encode()

    assert refusal(data) == f"manifest.json: {message}"
