"""The declaration of an image input: what a stage of the bundle, and the begin of its programs, are made of."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from export.declarations import Declaration
from export.errors import ExportError
from export.values import as_int, as_list, short_repr
from runtime.errors import nearest
from runtime.image_stage import CHANNELS, INTERPOLATIONS, MAX_PIXELS, MAX_SIDE, RESIZES

LAYOUTS = ("HWC", "CHW")
_CROPS = ("center",)
_LEVELS = 255


@dataclasses.dataclass(frozen=True, slots=True)
class Image(Declaration):
    """An image input, and how a file of JPEG, PNG or WebP becomes it.

    The bundle takes files, or pixels of type uint8 and the size that is declared here; its programs
    compute `(pixel - mean) / std`, and change the layout, before the model.

    Attributes:
      input: the model's input, by whose name callers send images.
      size: its height and width, or one number for both.
      resize: `exact`, whatever becomes of the shape; `shortest`, then the middle is cut out;
        `letterbox`, then zeros are added around.
      resize_to: what the shortest side is resized to before the middle is cut out (resize 256, crop
        224); None for the least that covers `size`.
      crop: `center`.
      interpolation: `nearest`, `bilinear`, `bicubic` or `lanczos3`.
      antialias: as of `jax.image.resize`, which is true there, and false in `tf.image.resize`.
      mean: subtracted from each pixel, one for all channels or one for each; in units of the pixel, 0
        to 255.
      std: what the difference is divided by, likewise.
      channels: `RGB`, or `L` for shades of gray.
      layout: of the model's input, `HWC` or `CHW`.
      max_pixels: that an image can have; larger ones are refused before they are decoded.
    """

    input: str
    size: int | Sequence[int]
    resize: str = dataclasses.field(default="exact", kw_only=True)
    resize_to: int | None = dataclasses.field(default=None, kw_only=True)
    crop: str = dataclasses.field(default="center", kw_only=True)
    interpolation: str = dataclasses.field(default="bilinear", kw_only=True)
    antialias: bool = dataclasses.field(default=True, kw_only=True)
    mean: float | Sequence[float] = dataclasses.field(default=0, kw_only=True)
    std: float | Sequence[float] = dataclasses.field(default=1, kw_only=True)
    channels: str = dataclasses.field(default="RGB", kw_only=True)
    layout: str = dataclasses.field(default="HWC", kw_only=True)
    max_pixels: int = dataclasses.field(default=MAX_PIXELS, kw_only=True)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that callers send images by."""
        return (self.input,)

    @property
    def normalizes(self) -> bool:
        """Whether pixels are changed before the model."""
        return any(_listed(self.mean)) or any(value != 1 for value in _listed(self.std))

    def checked(self) -> "Image":
        """Return this with every field in its one form.

        Raises:
          ExportError: names the field, what it takes and what it got.
        """
        where = f"image {self.input!r}"
        for key, options in _CHOICES.items():
            value = getattr(self, key)
            if value not in options:
                hint = nearest(value, options) if isinstance(value, str) else ""
                raise ExportError(
                    f"{where}: expected {key} {_either(options)}, got {short_repr(value)}{hint}"
                )
        if not isinstance(self.antialias, bool):
            raise ExportError(
                f"{where}: expected antialias True or False, got {short_repr(self.antialias)}"
            )
        size = self._size(where)
        changes: dict[str, Any] = {"size": size}
        changes["resize_to"] = self._resize_to(size, where)
        changes["max_pixels"] = _whole(self.max_pixels, 1, None, f"{where}: expected max_pixels")
        count = CHANNELS[self.channels]
        for key in ("mean", "std"):
            changes[key] = _channels(getattr(self, key), count, f"{where}: expected {key}")
        _refuse_units(changes["mean"], changes["std"], where)
        return dataclasses.replace(self, **changes)

    def _size(self, where: str) -> tuple[int, int]:
        sides = as_list(self.size)
        if sides is None:
            sides = [self.size, self.size]
        if len(sides) != 2:
            raise ExportError(
                f"{where}: expected size as height and width, got {short_repr(self.size)}"
            )
        high, wide = (_whole(s, 1, MAX_SIDE, f"{where}: expected size") for s in sides)
        return high, wide

    def _resize_to(self, size: tuple[int, int], where: str) -> int | None:
        if self.resize_to is None:
            return None
        if self.resize != "shortest":
            raise ExportError(
                f"{where}: expected resize_to with resize 'shortest' alone, got {self.resize!r}"
            )
        return _whole(self.resize_to, max(size), MAX_SIDE, f"{where}: expected resize_to")


_CHOICES = {
    "resize": RESIZES,
    "crop": _CROPS,
    "interpolation": INTERPOLATIONS,
    "channels": tuple(CHANNELS),
    "layout": LAYOUTS,
}


def _either(options: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(map(repr, options[:-1])), repr(options[-1])]))


def _whole(value: Any, low: int, high: int | None, what: str) -> int:
    whole = as_int(value)
    if whole is None or whole < low or (high is not None and whole > high):
        limits = f"{low} or more" if high is None else f"of {low} to {high}"
        raise ExportError(f"{what} {limits}, got {short_repr(value)}")
    return whole


def _listed(value: Any) -> list[Any]:
    values = as_list(value)
    return [value] if values is None else list(values)


def _channels(value: Any, count: int, what: str) -> tuple[float, ...]:
    values = _listed(value)
    try:
        numbers = [float(one) for one in values if not isinstance(one, str | bool)]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != len(values) or len(numbers) not in (1, count):
        one = "a number" if count == 1 else f"a number, or {count}"
        raise ExportError(f"{what} {one}, got {short_repr(value)}")
    return tuple(numbers * (count if len(numbers) == 1 else 1))


def _refuse_units(mean: Sequence[float], std: Sequence[float], where: str) -> None:
    """Refuse what is no mean or deviation of pixels, or one of pixels from 0 to 1."""
    small = [value for value in mean if 0 < value <= 1] + [value for value in std if 0 < value < 1]
    if small:
        listed = [
            f"{key}=({', '.join(f'{_LEVELS * value:.6g}' for value in values)})"
            for key, values in (("mean", mean), ("std", std))
        ]
        raise ExportError(
            f"{where}: expected mean and std in units of the pixel, 0 to 255, got {small[0]:g}; if they "
            f"are of pixels from 0 to 1, pass {', '.join(listed)}"
        )
    if not all(0 <= value <= _LEVELS for value in mean):
        raise ExportError(f"{where}: expected mean of 0 to 255, got {short_repr(tuple(mean))}")
    if not all(0 < value < float("inf") for value in std):
        raise ExportError(f"{where}: expected std above 0, got {short_repr(tuple(std))}")
