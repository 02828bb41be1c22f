"""The image inputs of an export: the stages they become, and what programs do with pixels first."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from export.errors import ExportError
from export.golden_images import seeded_images
from export.image_input import Image
from export.reference_pixels import refuse_other_pixels
from runtime.image_stage import CHANNELS, MAX_FILE_BYTES, ImageStage
from runtime.preprocessing.decoding import library_version
from runtime.preprocessing.images import ImageReader
from runtime.signature import BATCH, Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype

# Golden images where none are given.
_ROWS = 8
# Mean and deviation by channel.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenedImage:
    """An image input that fits the model.

    Attributes:
      image: as it was declared.
      model_input: the input as the model has it.
      stage: as the manifest will have it.
      inputs: those of the programs that differ from the model's: pixels.
      files: none.
      label: what messages call it.
    """

    image: Image
    model_input: TensorSpec
    stage: ImageStage
    inputs: tuple[TensorSpec, ...]
    label: str
    files: tuple[tuple[str, bytes], ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the stage does, and what the programs do behind it."""
        behind = ""
        if self.image.normalizes:
            mean, std = (", ".join(f"{v:g}" for v in values) for values in self._statistics)
            behind = f"; programs compute (pixel - [{mean}]) / [{std}]"
        return (f"{self.stage.description}{behind}",)

    @property
    def _statistics(self) -> Statistics:
        # As checked fields are.
        return cast("Statistics", (self.image.mean, self.image.std))

    def reader(self, signature: Signature) -> ImageReader:
        """Return what makes pixels of images."""
        return ImageReader(self.stage, signature)

    def wanted(self, signature: Signature) -> int:  # noqa: ARG002 (whatever its axes)
        """Return the number of golden rows that show all there is to show."""
        return _ROWS

    def draw(self, signature: Signature, count: int, seed: list[int]) -> dict[str, list[Any]]:  # noqa: ARG002
        """Return golden images by name."""
        return {self.stage.input: seeded_images(self.stage, count, seed)}

    def refuse_difference(
        self,
        reference: Callable[..., Any],
        columns: dict[str, list[Any]],
        signature: Signature,
        tolerance: tuple[float, float],
    ) -> None:
        """Refuse pixels that are others than the training code's own; see `refuse_other_pixels`."""
        reader = self.reader(signature)
        spec = self.inputs[0]
        shape = tuple(dim for dim in spec.shape if isinstance(dim, int))
        refuse_other_pixels(
            reference,
            columns[self.stage.input],
            reader,
            lambda values: self._to_levels(values, shape),
            tolerance,
        )

    def convert(self, pixels: Any) -> Any:
        """Return the model's input of the programs' pixels; traced into each program."""
        values = pixels
        if "float" in self.model_input.dtype:
            mean, std = self._statistics
            values = pixels.astype(jnp.promote_types(jnp.float32, self.model_input.dtype))
            if self.image.normalizes:
                plain = pixels.ndim < 4
                values = (values - self._along(mean, plain=plain)) / self._along(std, plain=plain)
            values = values.astype(numpy_dtype(self.model_input.dtype))
        return jnp.moveaxis(values, -1, 1) if self._channels_first(values.ndim) else values

    def _along(self, values: tuple[float, ...], *, plain: bool) -> Any:
        return np.float32(values[0]) if plain else np.array(values, np.float32)

    def _channels_first(self, rank: int) -> bool:
        return self.image.layout == "CHW" and rank == 4

    def _to_levels(self, values: Array, shape: tuple[int, ...]) -> Array | None:
        """Return the pixels that made a model's inputs, as floats; None for another shape."""
        if self._channels_first(values.ndim):
            values = np.moveaxis(values, 1, -1)
        if values.shape[1:] != shape:
            return None
        if values.dtype.kind in "iu":
            return values.astype(np.float64)
        mean, std = (self._along(v, plain=values.ndim < 4) for v in self._statistics)
        levels: Array = values.astype(np.float64) * std + mean
        return levels


def open_image(image: Image, signature: Signature) -> OpenedImage:
    """Decide what the stage of an image is, and what its programs take.

    Args:
      image: checked.
      signature: of the model's inputs.

    Raises:
      ExportError: it does not fit the model's input.
    """
    library_version()
    label = f"image {image.input!r}"
    inputs = {spec.name: spec for spec in signature.inputs}
    if image.input not in inputs:
        raise ExportError(
            f"{label}: expected the name of an input, {', '.join(inputs)}, got {image.input!r}"
        )
    spec = inputs[image.input]
    high, wide = cast("tuple[int, int]", image.size)
    count = CHANNELS[image.channels]
    pixels = [(BATCH, high, wide, count)]
    models = [(BATCH, count, high, wide) if image.layout == "CHW" else pixels[0]]
    shapes: list[tuple[Any, ...]] = [*models, *([(BATCH, high, wide)] if count == 1 else [])]
    if spec.shape not in shapes or not ("float" in spec.dtype or spec.dtype == "uint8"):
        expected = " or ".join(
            f"{dtype}[{', '.join(map(str, shape))}]"
            for dtype in ("float32", "uint8")
            for shape in shapes
        )
        raise ExportError(f"{label}: expected {expected}, got {spec}")
    if spec.dtype == "uint8" and image.normalizes:
        raise ExportError(
            f"{label}: expected a floating input for mean and std, got {spec}; declare it as float32, "
            "or leave them to the model"
        )
    if (spec.minimum or 0, 255 if spec.maximum is None else spec.maximum) != (0, 255):
        raise ExportError(
            f"{label}: expected values of 0 to 255, got {spec.minimum} to {spec.maximum}"
        )
    shape = spec.shape if len(spec.shape) == 3 else pixels[0]
    program = dataclasses.replace(spec, dtype="uint8", shape=shape)
    stage = ImageStage(
        input=image.input,
        size=(high, wide),
        resize=image.resize,
        resize_to=image.resize_to,
        interpolation=image.interpolation,
        antialias=image.antialias,
        channels=image.channels,
        max_pixels=image.max_pixels,
        max_bytes=MAX_FILE_BYTES,
    )
    return OpenedImage(image=image, model_input=spec, stage=stage, inputs=(program,), label=label)


def converting(
    apply: Callable[[Any, Any], Any], converted: dict[str, Callable[[jax.Array], Any]]
) -> Callable[[Any, Any], Any]:
    """Return a model that takes the programs' inputs.

    Args:
      apply: (params, inputs by name) to outputs.
      converted: what makes a model's input of a program's, by name.
    """

    def model(params: Any, inputs: Any) -> Any:
        own = {name: convert(inputs[name]) for name, convert in converted.items()}
        return apply(params, {**inputs, **own})

    return model
