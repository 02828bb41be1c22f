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
# What torch 2.13.0 makes of them as floats, 3 by 4, by method and antialias.
TORCH = {
    ("nearest-exact", False): [[224, 198, 79, 253], [108, 187, 237, 214], [171, 227, 110, 59]],
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
}
# The same with antialias, 9 by 5: the height grows, the width shrinks.
TORCH_LARGER = {
    "bilinear": [
        [93.27, 126.48, 132.83, 180.41, 54.68],
        [119.34, 137.0, 155.06, 149.82, 136.25],
        [160.55, 160.94, 172.88, 126.59, 205.83],
        [221.13, 214.65, 155.21, 156.07, 157.89],
        [168.89, 186.74, 145.08, 156.7, 138.64],
        [106.46, 152.51, 135.29, 145.94, 120.8],
        [126.31, 180.93, 118.96, 129.87, 78.52],
        [110.36, 190.54, 125.15, 130.07, 103.16],
        [89.46, 193.04, 135.42, 134.3, 138.36],
    ],
    "bicubic": [
        [91.11, 123.97, 130.69, 194.74, 35.23],
        [113.11, 131.28, 157.69, 148.82, 133.1],
        [161.3, 161.07, 178.13, 112.81, 222.42],
        [235.48, 228.81, 147.54, 161.13, 158.92],
        [172.08, 193.93, 142.1, 161.35, 137.89],
        [95.2, 149.63, 138.5, 142.37, 120.05],
        [128.72, 188.35, 113.94, 130.4, 67.42],
        [108.85, 203.45, 119.07, 131.34, 101.38],
        [81.94, 206.02, 130.7, 135.69, 146.82],
    ],
}
# And as bytes with antialias, 3 by 4.
TORCH_BYTES = {
    "bilinear": [[145, 144, 161, 137], [168, 170, 145, 142], [131, 165, 127, 116]],
    "bicubic": [[144, 140, 166, 134], [173, 175, 142, 144], [124, 171, 122, 112]],
}
# Resized to a shortest side of 5, of which the middle is cut out, 4 by 4, by torchvision 0.29.1.
TORCHVISION = {
    "bilinear": [
        [154.79, 88.56, 208.99, 122.61],
        [190.21, 172.57, 144.44, 147.11],
        [187.0, 174.27, 134.45, 157.5],
        [182.82, 132.44, 142.82, 107.14],
    ],
    "bicubic": [
        [157.78, 66.37, 233.48, 115.73],
        [195.37, 176.01, 138.62, 145.56],
        [188.37, 180.17, 127.96, 165.87],
        [187.52, 120.94, 152.18, 97.11],
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


@mark.parametrize(("method", "antialias"), TORCH)
def test_torch_makes_the_same_of_floats(method, antialias):
    """Each interpolation is that of torch, recorded with torch 2.13.0 for CPUs and NumPy 2.4.6.

    As `interpolate(torch.tensor(PIXELS)[None, None].float(), size=(3, 4), mode=method,
    antialias=antialias)` of torch.nn.functional, with `align_corners=False` but for nearest-exact.
    """
    interpolation = method.partition("-")[0]

    got = made(PIXELS, 3, 4, interpolation=interpolation, antialias=antialias)

    assert np.abs(got - np.array(TORCH[method, antialias])).max() <= HALF


@mark.parametrize("method", TORCH_LARGER)
def test_torch_makes_the_same_where_a_side_grows(method):
    """A side that grows and one that shrinks are those of torch, recorded as above for (9, 5)."""
    got = made(PIXELS, 9, 5, interpolation=method)

    assert np.abs(got - np.array(TORCH_LARGER[method])).max() <= HALF


@mark.parametrize("method", TORCH_BYTES)
def test_torch_makes_nearly_the_same_of_bytes(method):
    """On bytes, torch rounds after each side: one level apart, recorded as above without `.float()`.

    `torchvision.transforms.v2.functional.resize` of version 0.29.1 returned the same values.
    """
    got = made(PIXELS, 3, 4, interpolation=method).astype(int)

    assert np.abs(got - np.array(TORCH_BYTES[method])).max() <= 1


@mark.parametrize("method", TORCHVISION)
def test_torchvision_cuts_out_the_same_middle(method):
    """A shortest side and a crop are those of torchvision, recorded with 0.29.1 on torch 2.13.0.

    As `v2.Compose([v2.Resize(5, method, antialias=True), v2.CenterCrop(4)])` of
    torchvision.transforms on `torch.tensor(PIXELS)[None].float()`.
    """
    got = made(PIXELS, 4, 4, resize="shortest", resize_to=5, interpolation=method)

    assert np.abs(got - np.array(TORCHVISION[method])).max() <= HALF


@mark.parametrize("size", [(3, 4), (9, 5), (40, 33)])
def test_pillow_makes_nearly_the_same_of_bytes(size):
    """Pillow's bilinear filter on bytes rounds after each side: at most one level apart."""
    own = Image.fromarray(PIXELS).resize(size[::-1], Image.Resampling.BILINEAR)

    assert np.abs(made(PIXELS, *size).astype(int) - np.asarray(own)).max() <= 1


def test_cubic_filters_of_bytes_differ_at_hard_edges():
    """Pillow's cubic filter on bytes cuts off what overshoots after each side: some levels apart."""
    edges = np.kron(np.indices((4, 4)).sum(axis=0) % 2, np.ones((3, 3))).astype(np.uint8) * 255
    own = Image.fromarray(edges).resize((40, 40), Image.Resampling.BICUBIC)

    apart = np.abs(made(edges, 40, 40, interpolation="bicubic").astype(int) - np.asarray(own))

    assert 1 < apart.max() <= 24


def test_a_letterbox_is_that_of_resize_with_pad():
    """The shape is kept, and what is left over is zeros, where TensorFlow has them."""
    assert np.abs(made(PIXELS, 5, 5, resize="letterbox") - np.array(PADDED)).max() <= HALF


@mark.parametrize("antialias", [True, False])
@mark.parametrize(("size", "whole"), [((90, 60), (48, 32)), ((61, 97), (32, 50))])
def test_the_middle_is_cut_out_of_a_resized_image(antialias, size, whole):
    """Resizing to 32 and cropping to 28 together equal both steps one after the other, up to rounding."""
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
