"""Files of images to pixels, by the library Pillow, which is imported when a bundle takes images.

Files come from strangers. What a file claims to be is looked at in its header, before anything is
decoded: its form, its number of pixels, its number of pictures. See SECURITY.md.
"""

import functools
import importlib
import importlib.metadata
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.errors import MissingLibrary, SignatureMismatch
from runtime.image_stage import MAX_SIDE, ImageStage
from runtime.preprocessing.image_forms import name_form
from runtime.preprocessing.resources import Resources
from runtime.tensors import Array

# The first release without known holes in what is used here; see SECURITY.md.
OLDEST = (12, 1)
_FORMATS = ("JPEG", "PNG", "WEBP")
# How Pillow calls a JPEG with further pictures behind it, such as a map of its brightness.
_SINGLE = ("JPEG", "MPO")
# A progressive JPEG has about ten. Each takes a pass over all of its pixels, so that thousands of them in
# a small file would take hours.
MAX_SCANS = 100
_SCAN = b"\xff\xda"
_JPEG = b"\xff\xd8"
# Bytes for each pixel while it is decoded: coefficients of a progressive JPEG, or a PNG with
# transparency and its copy without; then a channel of them in floating point.
PIXEL_BYTES = 16
_ORIENTATION = 0x0112
# What undoes each orientation, by the names of Pillow's transpositions.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def with_pixels[T](
    data: bytes, stage: ImageStage, where: str, resources: Resources, use: Callable[[Any], T]
) -> T:
    """Decode a file and pass on its image, within the memory that this takes.

    Args:
      data: the file.
      stage: has the limits, and the channels of the image.
      where: what an error calls the image.
      resources: limits of the request.
      use: gets a Pillow image of the mode `stage.channels`, turned as its EXIF orientation says.

    Raises:
      SignatureMismatch: it is no image of those formats, or is damaged, or too large.
    """
    if len(data) > stage.max_bytes:
        raise SignatureMismatch(
            f"{where}: expected at most {stage.max_bytes} bytes, got {len(data)}"
        )
    if data.startswith(_JPEG) and (scans := data.count(_SCAN)) > MAX_SCANS:
        raise SignatureMismatch(f"{where}: expected at most {MAX_SCANS} scans, got {scans}")
    with _header(data, where) as image:
        _check_header(image, stage, where)
        width, height = image.size
        wide = 4 * max(width * stage.size[0], height * stage.size[1])
        with resources.memory(PIXEL_BYTES * width * height + wide):
            return use(_decoded(image, stage.channels, where))


def _header(data: bytes, where: str) -> Any:
    """Return an image of which the header alone was read."""
    try:
        return pillow().open(io.BytesIO(data), formats=_FORMATS)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (damaged files raise a zoo of them)
        name = type(error).__name__
        if name == "UnidentifiedImageError":
            raise SignatureMismatch(
                f"{where}: expected an image as JPEG, PNG or WebP, got {name_form(data)}"
            ) from None
        if name == "DecompressionBombError":
            raise SignatureMismatch(
                f"{where}: expected an image of fewer pixels, got hundreds of millions"
            ) from None
        raise _damaged(where) from None


def _check_header(image: Any, stage: ImageStage, where: str) -> None:
    width, height = image.size
    if width * height > stage.max_pixels:
        raise SignatureMismatch(
            f"{where}: expected at most {stage.max_pixels} pixels, got {width}x{height}"
        )
    if max(width, height) > MAX_SIDE:
        raise SignatureMismatch(
            f"{where}: expected sides of at most {MAX_SIDE} pixels, got {width}x{height}"
        )
    if image.format not in _SINGLE and getattr(image, "is_animated", False):
        raise SignatureMismatch(f"{where}: expected one picture, got an animation")


def _decoded(image: Any, channels: str, where: str) -> Any:
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        if image.mode.startswith("I"):
            image = pillow().fromarray(_high_bytes(np.asarray(image)))
        if image.mode != channels and image.mode not in ("1", "L", "RGB"):
            image = image.convert("RGB")
        if image.mode != channels:
            image = image.convert(channels)
        return image if turn is None else image.transpose(pillow().Transpose[turn])
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 (likewise)
        raise _damaged(where) from None


def _high_bytes(gray: Array) -> Array:
    """Return 16 bits a pixel as 8, as PNG's own library does; Pillow would cut them off at 255."""
    return (np.clip(gray, 0, 65_535) >> 8).astype(np.uint8)


def _orientation(image: Any) -> int:
    """Return the EXIF orientation; 1 where there is none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (as every viewer, which shows such an image all the same)
        return 1
    return found if isinstance(found, int) else 1


def _damaged(where: str) -> SignatureMismatch:
    return SignatureMismatch(f"{where}: expected a whole image, got a damaged one")


def library_version() -> str:
    """Return the version of Pillow that is installed.

    Raises:
      MissingLibrary: none is, or one that is too old.
    """
    expected = ".".join(map(str, OLDEST))
    try:
        found = importlib.metadata.version("pillow")
    except importlib.metadata.PackageNotFoundError:
        found = "none installed"
    numbers = tuple(map(int, re.findall(r"\d+", found)[:2]))
    if numbers < OLDEST:
        raise MissingLibrary(
            f"image inputs: expected the package pillow {expected} or later, got {found}; "
            "pip install 'hloserve[image]'"
        )
    return found


@functools.cache
def pillow() -> Any:
    """Return the module PIL.Image.

    Raises:
      MissingLibrary: Pillow is not installed, or too old.
    """
    library_version()
    # It warns of odd files, to stderr and with what they say, as often as they are sent.
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    return importlib.import_module("PIL.Image")
