"""Golden images where none are given: files of each form, drawn from a seed."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runtime.image_stage import ImageStage
from runtime.preprocessing.decoding import pillow

# Pixels of a side at most, so that a bundle does not grow for its sake.
_LARGEST = 640
_ORIENTATION = 0x0112
_TURNED = 6

# Saves an image into a buffer.
_Save = Callable[[Any, io.BytesIO], None]


def _jpeg(image: Any, buffer: io.BytesIO) -> None:
    image.save(buffer, "JPEG", quality=85)


def _turned_jpeg(image: Any, buffer: io.BytesIO) -> None:
    exif = pillow().Exif()
    exif[_ORIENTATION] = _TURNED
    image.save(buffer, "JPEG", quality=75, exif=exif, progressive=True)


def _gray_jpeg(image: Any, buffer: io.BytesIO) -> None:
    image.convert("L").save(buffer, "JPEG", quality=85)


def _png(image: Any, buffer: io.BytesIO) -> None:
    image.save(buffer, "PNG")


def _palette_png(image: Any, buffer: io.BytesIO) -> None:
    image.quantize(64).save(buffer, "PNG")


def _clear_png(image: Any, buffer: io.BytesIO) -> None:
    image.putalpha(128)
    image.save(buffer, "PNG")


def _webp(image: Any, buffer: io.BytesIO) -> None:
    image.save(buffer, "WEBP", quality=80)


# Each with how its width and height compare with the stage's.
_FORMS: Sequence[tuple[float, float, _Save]] = (
    (2.0, 1.5, _jpeg),
    (1.3, 2.1, _turned_jpeg),
    (1.7, 1.7, _gray_jpeg),
    (1.5, 2.5, _png),
    (1.0, 1.0, _palette_png),
    (0.6, 0.8, _clear_png),
    (2.4, 1.2, _webp),
    (3.0, 1.0, _jpeg),
)


def seeded_images(stage: ImageStage, count: int, seed: Sequence[int]) -> list[bytes]:
    """Return files of images, of several forms and shapes; the same ones for the same seed.

    Args:
      stage: of which size they are to become.
      count: how many.
      seed: numbers.
    """
    rng = np.random.default_rng(list(seed))
    high, wide = stage.size
    found = []
    for i in range(count):
        x, y, save = _FORMS[i % len(_FORMS)]
        image = _clouds(_side(wide * x), _side(high * y), rng)
        buffer = io.BytesIO()
        save(image, buffer)
        found.append(buffer.getvalue())
    return found


def _side(pixels: float) -> int:
    return max(1, min(_LARGEST, round(pixels)))


def _clouds(width: int, height: int, rng: np.random.Generator) -> Any:
    """Draw an image with soft shapes and an edge, as photographs have both."""
    library = pillow()
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = library.fromarray(coarse).resize((width, height), library.Resampling.BICUBIC)
    pixels = np.array(image)
    pixels[height // 3 :, : width // 2] //= 2
    return library.fromarray(pixels)
