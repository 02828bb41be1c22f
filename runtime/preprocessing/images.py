"""Images to the array of one stage, row by row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runtime.errors import SignatureMismatch
from runtime.image_stage import ImageStage
from runtime.preprocessing.decoding import pillow, with_pixels
from runtime.preprocessing.readers import Where
from runtime.preprocessing.resizing import resized
from runtime.preprocessing.resources import Resources
from runtime.signature import Signature
from runtime.tensors import Array

# Releases of the library, and processors, round a value between two levels to either.
_LEVELS = 1
# Of files of images; however they are kept in memory.
_FILE = (bytes, bytearray, memoryview)


class Pixels(NamedTuple):
    """What one row of images became.

    Attributes:
      array: uint8[height, width, channels].
      size: on a bucketed axis: none.
      tokens: none.
      truncated: never.
    """

    array: Array
    size: int = 0
    tokens: int = 0
    truncated: bool = False


class ImageReader:
    """Makes a stage's array of images. May be called from any number of threads at once.

    Args:
      stage: as the manifest has it.
      signature: of the programs.

    Attributes:
      stage: likewise.
      axis: None: its input has one shape.
      row_bytes: of a row's pixels, which a file of few bytes can become.
      library: the package that this stands on.
      changed: what a message says where it makes something else than at export.
      panics: 0: what this library raises is an error of a row.

    Raises:
      MissingLibrary: Pillow is not installed, or too old.
    """

    axis: str | None = None
    library = "pillow"
    panics = 0
    changed = "the image library gives other pixels"

    def __init__(self, stage: ImageStage, signature: Signature) -> None:
        pillow()
        self.stage = stage
        spec = next(spec for spec in signature.inputs if spec.name == stage.input)
        self._shape = tuple(dim for dim in spec.shape if isinstance(dim, int))
        self.row_bytes = spec.row_bytes({})

    def read(
        self, columns: Mapping[str, Sequence[object]], where: Where, resources: Resources
    ) -> list[Pixels]:
        """Return the pixels of each row; see `Reader.read`."""
        name = self.stage.input
        found = []
        for i, value in enumerate(columns[name]):
            resources.check()
            found.append(Pixels(self._pixels(value, where(name, i), resources)))
        return found

    def _pixels(self, value: object, where: str, resources: Resources) -> Array:
        if not isinstance(value, _FILE):
            raise SignatureMismatch(
                f"{where}: expected the bytes of an image, got {type(value).__name__}"
            )
        return with_pixels(
            bytes(value), self.stage, where, resources, lambda image: resized(image, self.stage)
        )

    def lay_out(self, rows: Sequence[Pixels], size: int) -> dict[str, Array]:  # noqa: ARG002 (one)
        """Return the stage's input for some rows; see `Reader.lay_out`."""
        out = np.empty((len(rows), *self._shape), np.uint8)
        for i, row in enumerate(rows):
            out[i] = row.array.reshape(self._shape)
        return {self.stage.input: out}

    def difference(self, name: str, expected: Array, made: Array) -> str:
        """Return how far pixels are off, beyond what rounding explains; or nothing."""
        apart = np.abs(expected.astype(np.int16) - made)
        if apart.max(initial=0) <= _LEVELS:
            return ""
        at = np.unravel_index(int(apart.argmax()), apart.shape)
        place = ", ".join(map(str, at))
        return f"expected {name}[{place}] {expected[at]}, got {made[at]}"
