"""The training code's own way from images to the model's input, compared with the stage in the bundle."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from export.errors import ExportError, format_error
from runtime.preprocessing.images import ImageReader
from runtime.preprocessing.resources import UNLIMITED
from runtime.tensors import Array

# Levels of 255 that a row's pixels may be apart, in the mean and in the worst one: rounding, and what
# decoders differ by.
TOLERANCE = (1.0, 8.0)


def refuse_other_pixels(
    reference: Callable[..., Any],
    files: Sequence[bytes],
    reader: ImageReader,
    to_levels: Callable[[Array], Array | None],
    tolerance: tuple[float, float],
) -> None:
    """Compare the training code's own preparation with the stage's, on the golden images.

    Args:
      reference: takes a list of files, each as bytes, and returns the model's inputs, row by row;
        integers are taken for pixels.
      files: the golden images.
      reader: of the stage.
      to_levels: the model's inputs to the pixels that made them; None for another shape.
      tolerance: levels, in the mean of a row and in its worst pixel.

    Raises:
      ExportError: it fails, or gives other pixels; says of which image, how far and where.
    """
    try:
        given = np.stack([np.asarray(row) for row in reference(list(files))])
    except Exception as error:
        raise ExportError(f"reference_preprocess: {format_error(error)}") from error
    levels = to_levels(given) if len(given) == len(files) else None
    name = reader.stage.input
    items = reader.read({name: files}, lambda name, i: f"golden: {name!r} of row {i}", UNLIMITED)
    own = reader.lay_out(items, 0)[name]
    if levels is None:
        raise ExportError(
            f"reference_preprocess: expected the model's {name!r} for {len(files)} images, got "
            f"{given.dtype.name}{list(given.shape)}"
        )
    apart = np.abs(levels - own)
    for i, row in enumerate(apart):
        mean, worst = float(row.mean()), float(row.max())
        if mean <= tolerance[0] and worst <= tolerance[1]:
            continue
        at = np.unravel_index(int(row.argmax()), row.shape)
        raise ExportError(
            f"reference_preprocess: golden image {i}: expected pixels within {tolerance[0]:g} levels in "
            f"the mean and {tolerance[1]:g} in the worst one, got {mean:.2f} and {worst:.1f}, at "
            f"[{', '.join(map(str, at))}] {levels[i][at]:.1f} of the training code and {own[i][at]} of the "
            "bundle; compare size, resize, interpolation and antialias, or pass pixel_tolerance"
        )
