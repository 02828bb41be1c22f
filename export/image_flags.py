"""The flags of image inputs, to the field `preprocess` of an ExportSpec."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from export.errors import ExportError
from export.image_input import Image
from export.input_options import expect_declared, pair
from export.preprocess import read_preprocess
from runtime.commandline import Parser
from runtime.errors import nearest


def add_image_flags(parser: Parser) -> None:
    """Add the flags that say which inputs are images."""
    images = parser.add_argument_group("image inputs")
    images.add_argument(
        "--image",
        action="append",
        dest="images",
        default=[],
        metavar="NAME=SIZE",
        help="an input that callers may send as a file of JPEG, PNG or WebP, and its height and width: "
        "image=224 or image=240,320; repeatable",
    )
    images.add_argument(
        "--image-option",
        action="append",
        dest="image_options",
        default=[],
        metavar="NAME.FIELD=VALUE",
        help="how an image becomes its input, a field of export.Image: image.resize=shortest, "
        "image.antialias=false, image.mean=123.68,116.28,103.53; repeatable",
    )


def declared_images(arguments: argparse.Namespace) -> tuple[Image, ...]:
    """Return the images that flags declare.

    Raises:
      ExportError: a flag does not read.
    """
    found = []
    for text in arguments.images:
        name, size = pair("--image", text, "image=224")
        sides = size.split(",")
        found.append(Image(name, sides if len(sides) > 1 else sides[0]))  # type: ignore[arg-type]
    return tuple(found)


def changed_images(
    declared: Sequence[Image], images: Sequence[Image], arguments: argparse.Namespace
) -> tuple[Image, ...]:
    """Return the images of a spec with what flags say of them.

    Args:
      declared: of MODEL.
      images: that `declared_images` returned; those of the spec are replaced by any.
      arguments: of the command line.

    Raises:
      ExportError: a flag does not read, or names none of the images.
    """
    named = {image.input: image for image in images or declared}
    for text in arguments.image_options:
        place, value = pair("--image-option", text, "image.resize=shortest")
        name, _, field = place.partition(".")
        expect_declared("--image-option", name, named, "image")
        if field not in _READERS:
            raise ExportError(
                f"--image-option: expected NAME.FIELD=VALUE with a FIELD of {', '.join(_READERS)}, got "
                f"{text!r}{nearest(field, _READERS)}"
            )
        read: Any = {field: _READERS[field](value)}
        named[name] = dataclasses.replace(named[name], **read)
    checked = read_preprocess(named.values())
    return tuple(image for image in checked if isinstance(image, Image))


def _boolean(text: str) -> Any:
    return {"true": True, "false": False}.get(text.lower(), text)


def _numbers(text: str) -> Any:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        return text


_READERS: Mapping[str, Callable[[str], Any]] = {
    "resize": str,
    "resize_to": str,
    "crop": str,
    "interpolation": str,
    "antialias": _boolean,
    "mean": _numbers,
    "std": _numbers,
    "channels": str,
    "layout": str,
    "max_pixels": str,
}
