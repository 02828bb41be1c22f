"""The stage that makes an input of images: how it is declared in the manifest.

Read with the standard library alone. What it does is in `runtime.preprocessing.images`.
"""

import dataclasses

from runtime.entries import File
from runtime.errors import InvalidField
from runtime.node import Node, required
from runtime.signature import BATCH, Signature, TensorSpec

RESIZES = ("exact", "shortest", "letterbox")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos3")
# Values of a pixel, by what they are.
CHANNELS = {"RGB": 3, "L": 1}
# Of a side, as of a JPEG.
MAX_SIDE = 65_535
# A PNG of half a megabyte can have ten times as many pixels, and takes seconds and a gigabyte.
MAX_PIXELS = 25_000_000
MAX_FILE_BYTES = 32 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageStage:
    """Images, each a file of JPEG, PNG or WebP, to the pixels of one input.

    Attributes:
      kind: image.
      input: the input, by whose name callers send images as well: uint8[_, height, width, channels],
        or uint8[_, height, width] for one channel.
      size: its height and width.
      resize: exact, whatever becomes of the shape; shortest, then the middle is cut out; or
        letterbox, then zeros are added around.
      resize_to: size of the shortest side before the middle is cut out; None for the least that
        covers `size`.
      interpolation: nearest, bilinear, bicubic or lanczos3.
      antialias: whether a filter is as wide as the pixels of the result, where these are fewer.
      channels: RGB or L.
      max_pixels: that an image can have.
      max_bytes: that a file can have.
    """

    kind: str = required("image")
    input: str
    size: tuple[int, int]
    resize: str
    resize_to: int | None = None
    interpolation: str
    antialias: bool
    channels: str
    max_pixels: int
    max_bytes: int

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Return the names that callers send images by."""
        return (self.input,)

    @property
    def made(self) -> tuple[str, ...]:
        """Return the names of the inputs that this stage makes."""
        return (self.input,)

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Return the names that both raw inputs and tensors are sent by: what is sent decides."""
        return (self.input,)

    @property
    def files(self) -> tuple[File, ...]:
        """Return the files of this stage: none."""
        return ()

    @property
    def max_marks(self) -> int:
        """Return how many commas and brackets a row can have in JSON strings: base64 has none."""
        return 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return height, width and channels."""
        return (*self.size, CHANNELS[self.channels])

    @property
    def description(self) -> str:
        """Return what this does, for a person."""
        height, width = self.size
        how = {
            "exact": "resized",
            "shortest": "resized and cut",
            "letterbox": "resized and padded",
        }[self.resize]
        by = f"{self.interpolation}{' with antialias' if self.antialias else ''}"
        return (
            f"{self.input}: image (JPEG, PNG or WebP), {how} to {height}x{width} {self.channels} by "
            f"{by}; at most {self.max_pixels:,} pixels and {self.max_bytes:,} B"
        )

    @classmethod
    def from_node(cls, node: Node) -> "ImageStage":
        """Read one entry of `$.preprocess`, whose kind was taken."""
        size = node.items("size", int)
        if len(size) != 2:
            raise InvalidField(f"expected height and width, got {len(size)} sizes", "size")
        return cls(
            input=node.take("input", str),
            size=(size[0], size[1]),
            resize=node.choice("resize", RESIZES),
            resize_to=node.optional("resize_to", int),
            interpolation=node.choice("interpolation", INTERPOLATIONS),
            antialias=node.take("antialias", bool),
            channels=node.choice("channels", CHANNELS),
            max_pixels=node.take("max_pixels", int),
            max_bytes=node.take("max_bytes", int),
        )

    def check(self, signature: Signature) -> None:
        """Raise InvalidField unless the input that this makes is there, of its dtype and shape."""
        inputs = {spec.name: spec for spec in signature.inputs}
        if self.input not in inputs:
            raise InvalidField(f"expected one of {', '.join(inputs)}, got {self.input!r}", "input")
        if not all(1 <= side <= MAX_SIDE for side in self.size):
            raise InvalidField(f"expected sides of 1 to {MAX_SIDE}, got {list(self.size)}", "size")
        self._check_input(inputs[self.input])
        if self.resize_to is not None and (
            self.resize != "shortest" or not max(self.size) <= self.resize_to <= MAX_SIDE
        ):
            raise InvalidField(
                f"expected {max(self.size)} to {MAX_SIDE}, and resize 'shortest', got "
                f"{self.resize_to} and {self.resize!r}",
                "resize_to",
            )
        for key in ("max_pixels", "max_bytes"):
            if getattr(self, key) < 1:
                raise InvalidField(f"expected at least 1, got {getattr(self, key)}", key)

    def _check_input(self, spec: TensorSpec) -> None:
        shapes: list[tuple[int | str, ...]] = [(BATCH, *self.shape)]
        if self.channels == "L":
            shapes.append((BATCH, *self.size))
        if spec.dtype != "uint8" or spec.shape not in shapes or spec.mask:
            expected = " or ".join(f"uint8[{', '.join(map(str, shape))}]" for shape in shapes)
            raise InvalidField(f"expected {expected}, got {spec}", "input")
        if (spec.minimum or 0, 255 if spec.maximum is None else spec.maximum) != (0, 255):
            raise InvalidField(
                f"expected values of 0 to 255, got {spec.minimum} to {spec.maximum}", "input"
            )
