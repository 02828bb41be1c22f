"""Images in the size that programs take: what jax, TensorFlow and Pillow make of them, within half a level."""

import jax
import numpy as np
from PIL import Image
from pytest import mark

from runtime.image_stage import ImageStage
from runtime.preprocessing.resizing import Placement, place, resized

# What is rounded to whole levels is off by half a one, and by what libraries differ in the last digits.
HALF = 0.51
JAX = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic", "lanczos3": "lanczos3"}
METHODS = [(method, antialias) for method in JAX for antialias in (True, False)]
PIXELS = np.array(
    [
        [54, 150, 157, 2, 252, 237, 8, 87],
        [91, 224, 95, 198, 173, 79, 167, 253],
        [224, 254, 237, 165, 130, 137, 244, 78],
        [97, 108, 149, 187, 82, 237, 12, 214],
        [83, 201, 225, 59, 157, 156, 39, 88],
        [33, 171, 192, 227, 41, 110, 253, 59],
    ],
    np.uint8,
)
# What tf.image.resize of TensorFlow 2.21 makes of them, 3 by 4, by method and antialias.
TENSORFLOW = {
    ("nearest", True): [[224, 198, 79, 253], [108, 187, 237, 214], [171, 227, 110, 59]],
    ("bilinear", True): [
        [144.86, 143.84, 160.79, 136.45],
        [168.25, 169.53, 144.62, 141.61],
        [130.76, 164.91, 126.18, 115.59],
    ],
    ("bilinear", False): [
        [129.75, 113.0, 185.25, 128.75],
        [170.75, 184.5, 146.5, 137.0],
        [122.0, 175.75, 116.0, 109.75],
    ],
    ("bicubic", True): [
        [143.74, 139.69, 166.06, 133.89],
        [173.51, 174.38, 142.35, 143.88],
        [124.36, 170.9, 121.73, 111.67],
    ],
    ("bicubic", False): [
        [123.55, 96.28, 200.93, 124.95],
        [171.98, 195.99, 145.98, 133.58],
        [117.92, 180.07, 109.23, 108.54],
    ],
    ("lanczos3", True): [
        [145.73, 145.35, 163.55, 135.22],
        [177.92, 176.16, 138.64, 147.26],
        [121.32, 171.32, 119.29, 109.94],
    ],
    ("lanczos3", False): [
        [115.66, 77.9, 218.96, 121.93],
        [169.96, 210.1, 146.34, 125.85],
        [116.27, 180.49, 101.37, 109.08],
    ],
}
# tf.image.resize_with_pad with antialias, 5 by 5.
PADDED = [
    [136.05, 150.01, 154.45, 151.76, 137.63],
    [161.25, 182.0, 145.33, 148.16, 139.7],
    [109.1, 184.09, 127.18, 132.92, 107.19],
    [0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0],
]


def stage(*size, **options):
    """Return a stage of this height and width."""
    usual = {
        "input": "x",
        "resize": "exact",
        "interpolation": "bilinear",
        "antialias": True,
        "channels": "L",
        "max_pixels": 10**9,
        "max_bytes": 10**9,
    }
    return ImageStage(**usual | {"size": size} | options)


def made(pixels, *size, **options):
    """Return what becomes of pixels of one channel."""
    return resized(Image.fromarray(pixels), stage(*size, **options))[..., 0]


@mark.parametrize(("method", "antialias"), METHODS)
@mark.parametrize("size", [(4, 6), (9, 5), (40, 33)])
def test_jax_makes_the_same(method, antialias, size):
    """Each interpolation is that of jax.image.resize, smaller and larger, on three channels."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (17, 23, 3), dtype=np.uint8)
    expected = jax.image.resize(
        pixels.astype(np.float32), (*size, 3), JAX[method], antialias=antialias
    )

    got = resized(
        Image.fromarray(pixels),
        stage(*size, interpolation=method, antialias=antialias, channels="RGB"),
    )

    assert got.dtype == np.uint8
    assert np.abs(got - np.clip(expected, 0, 255)).max() <= HALF


@mark.parametrize(("method", "antialias"), TENSORFLOW)
def test_tensorflow_makes_the_same(method, antialias):
    """Each interpolation is that of tf.image.resize, as it was recorded."""
    got = made(PIXELS, 3, 4, interpolation=method, antialias=antialias)

    assert np.abs(got - np.array(TENSORFLOW[method, antialias])).max() <= HALF


def test_pillow_makes_nearly_the_same_of_whole_levels():
    """Pillow's own filter on bytes, as of torchvision, rounds twice: a level at most beside."""
    own = Image.fromarray(PIXELS).resize((4, 3), Image.Resampling.BILINEAR)

    assert np.abs(made(PIXELS, 3, 4).astype(int) - np.asarray(own)).max() <= 1


def test_a_letterbox_is_that_of_resize_with_pad():
    """The shape is kept, and what is left over is zeros, where TensorFlow has them."""
    assert np.abs(made(PIXELS, 5, 5, resize="letterbox") - np.array(PADDED)).max() <= HALF


@mark.parametrize("antialias", [True, False])
@mark.parametrize(("size", "whole"), [((90, 60), (48, 32)), ((61, 97), (32, 50))])
def test_the_middle_is_cut_out_of_a_resized_image(antialias, size, whole):
    """Resizing to 32 and cutting out 28 gives what both steps by themselves give, nearly nothing more."""
    rng = np.random.default_rng(5)
    image = Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8))
    options = {"antialias": antialias}

    got = resized(image, stage(28, 28, resize="shortest", resize_to=32, **options))

    both = resized(image, stage(whole[1], whole[0], **options))
    left, top = round((whole[0] - 28) / 2), round((whole[1] - 28) / 2)
    assert np.abs(got.astype(int) - both[top : top + 28, left : left + 28]).max() <= 1


def test_without_a_size_the_shortest_side_covers():
    """As little as possible is cut off: one side fits, and the middle of the other is taken."""
    assert place((200, 100), stage(50, 50, resize="shortest")) == Placement(
        (50, 0, 150, 100), (50, 50)
    )
    assert place((100, 100), stage(20, 40, resize="shortest")) == Placement(
        (0, 25, 100, 75), (40, 20)
    )


def test_an_image_of_the_size_is_taken_as_it_is():
    """Nothing is interpolated where every pixel has its place."""
    assert np.array_equal(made(PIXELS, 6, 8), PIXELS)
    assert np.array_equal(made(PIXELS, 6, 8, resize="letterbox"), PIXELS)


@mark.parametrize("resize", ["exact", "shortest", "letterbox"])
@mark.parametrize("antialias", [True, False])
@mark.parametrize("shape", [(1, 60_000), (60_000, 1), (1, 1)])
def test_any_shape_becomes_the_size(resize, antialias, shape):
    """The longest and thinnest images are resized in the memory of the result."""
    assert made(np.full(shape, 7, np.uint8), 5, 6, resize=resize, antialias=antialias).shape == (
        5,
        6,
    )
