"""Images to the size that programs take, as training code does it.

With antialias by Pillow's filters in floating point, which are those of jax.image, tf.image and torch;
without by the same interpolation at single points, which no filter of Pillow does, in NumPy. What
comes out is rounded to whole values of pixels, half a level off at most.
"""

from typing import Any, NamedTuple

import numpy as np

from runtime.image_stage import ImageStage
from runtime.preprocessing.decoding import pillow
from runtime.tensors import Array

# Filters of Pillow by their interpolation.
_FILTERS = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos3": "LANCZOS"}
# Pixels to each side that an interpolation without antialias looks at.
_REACH = {"bilinear": 1, "bicubic": 2, "lanczos3": 3}
_CUBIC = -0.5  # Keys' kernel, as of jax.image and tf.image


class Placement(NamedTuple):
    """Which part of an image becomes which part of the result. Pairs are of x and y.

    Attributes:
      box: left, top, right, bottom in the image, in pixels and parts of them.
      size: of this part in the result.
      offset: of its left and upper corner there.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)


def place(size: tuple[int, int], stage: ImageStage) -> Placement:
    """Return what becomes of an image of this width and height."""
    width, height = size
    high, wide = stage.size
    if stage.resize == "exact":
        return Placement((0, 0, width, height), (wide, high))
    if stage.resize == "letterbox":
        # As tf.image.resize_with_pad rounds, which makes the margins of the parts of pixels too.
        ratio = max(width / wide, height / high)
        x, y = width / ratio, height / ratio
        inner = (max(1, int(x)), max(1, int(y)))
        return Placement((0, 0, width, height), inner, (int((wide - x) / 2), int((high - y) / 2)))
    whole = _covering(size, stage)
    # Only what is kept is computed; an image can be thousands of times as long as it is wide.
    left, top = round((whole[0] - wide) / 2), round((whole[1] - high) / 2)
    x, y = width / whole[0], height / whole[1]
    box = (left * x, top * y, min((left + wide) * x, width), min((top + high) * y, height))
    return Placement(box, (wide, high))


def _covering(size: tuple[int, int], stage: ImageStage) -> tuple[int, int]:
    """Return the width and height of an image before its middle is cut out.

    Where its shortest side is stated, the longest is rounded down, as torchvision does it.
    """
    width, height = size
    high, wide = stage.size
    shortest = stage.resize_to or (high if high == wide else None)
    if shortest is None:
        scale = max(wide / width, high / height)
        return max(wide, int(width * scale)), max(high, int(height * scale))
    if width <= height:
        return shortest, max(shortest, int(shortest * height / width))
    return max(shortest, int(shortest * width / height)), shortest


def resized(image: Any, stage: ImageStage) -> Array:
    """Return an image in the size of a stage.

    Args:
      image: of Pillow, of the mode `stage.channels`.
      stage: with the size and how it is reached.

    Returns:
      uint8[height, width, channels].
    """
    at = place(image.size, stage)
    if at == Placement((0, 0, *image.size), image.size):
        part = _levels(image)
    elif stage.antialias and stage.interpolation != "nearest":
        part = _filtered(image, at, stage.interpolation)
    else:
        part = _sampled(_levels(image), at, stage.interpolation)
    if part.shape == stage.shape:
        return part
    whole = np.zeros(stage.shape, np.uint8)
    (left, top), (wide, high) = at.offset, at.size
    whole[top : top + high, left : left + wide] = part
    return whole


def _levels(image: Any) -> Array:
    array: Array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _filtered(image: Any, at: Placement, interpolation: str) -> Array:
    """Resize by one of Pillow's filters, channel by channel: only one has floating point."""
    method = pillow().Resampling[_FILTERS[interpolation]]
    out = np.empty((at.size[1], at.size[0], len(image.getbands())), np.uint8)
    for i in range(out.shape[2]):
        band = image.getchannel(i).convert("F")
        out[..., i] = _rounded(np.asarray(band.resize(at.size, method, box=at.box)))
    return out


def _rounded(values: Array) -> Array:
    # Cubic and Lanczos overshoot at edges.
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _sampled(pixels: Array, at: Placement, interpolation: str) -> Array:
    """Interpolate between the pixels beside each point, however far points are apart."""
    left, top, right, bottom = at.box
    rows = _taps(top, bottom, at.size[1], len(pixels), interpolation)
    columns = _taps(left, right, at.size[0], pixels.shape[1], interpolation)
    total = np.zeros((at.size[1], at.size[0], pixels.shape[2]), np.float32)
    for y, above in rows:
        for x, beside in columns:
            weights = (above[:, None] * beside[None, :]).astype(np.float32)
            total += weights[..., None] * pixels[y[:, None], x[None, :]]
    return _rounded(total)


def _taps(
    begin: float, end: float, count: int, size: int, interpolation: str
) -> list[tuple[Array, Array]]:
    """Return which pixels along a side are looked at for each of `count` points, with their weights.

    Pixels beyond the image have none; the others' are scaled to make up for that.
    """
    centers = begin + (np.arange(count) + 0.5) * ((end - begin) / count)
    if interpolation == "nearest":
        return [(np.clip(np.floor(centers).astype(np.int64), 0, size - 1), np.ones(count))]
    reach = _REACH[interpolation]
    first = np.floor(centers - 0.5).astype(np.int64) - (reach - 1)
    places = first + np.arange(2 * reach)[:, None]
    weights = _kernel(np.abs(centers - 0.5 - places), interpolation)
    weights[(places < 0) | (places >= size)] = 0
    weights /= weights.sum(axis=0)
    return list(zip(np.clip(places, 0, size - 1), weights, strict=True))


def _kernel(distance: Array, interpolation: str) -> Array:
    """Return the weight of pixels at a distance from a point, in pixels."""
    x = distance
    weights: Array
    if interpolation == "bilinear":
        weights = np.maximum(0, 1 - x)
    elif interpolation == "lanczos3":
        weights = np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)
    else:
        near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
        far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
        weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    return weights
