"""The raw inputs of an export, texts and images: their stages, and goldens that begin at them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from export.errors import ExportError
from export.golden_inputs import GoldenInputs, seeded_inputs
from export.golden_rows import RawRows, given_rows, raw_goldens
from export.image_input import Image
from export.images import OpenedImage, converting, open_image
from export.preprocess import Declared
from export.reference_pixels import TOLERANCE
from export.spec import ExportSpec
from export.texts import open_text
from runtime.errors import InvalidField
from runtime.inputs import Checker
from runtime.preprocessing.libraries import library_versions
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.readers import Reader
from runtime.raw_inputs import Stage, check_stages
from runtime.signature import Axis, Signature, TensorSpec

_SHOWN = 3
_SHOWN_CHARACTERS = 40


class _Opened(Protocol):
    """A raw input that was tried, and fits the model; see `OpenedText` and `OpenedImage`."""

    @property
    def label(self) -> str: ...

    @property
    def stage(self) -> Stage: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def files(self) -> tuple[tuple[str, bytes], ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def reader(self, signature: Signature) -> Reader: ...

    def wanted(self, signature: Signature) -> int: ...

    def draw(self, signature: Signature, count: int, seed: list[int]) -> dict[str, list[Any]]: ...

    def refuse_difference(
        self,
        reference: Callable[..., Any],
        columns: dict[str, list[Any]],
        signature: Signature,
        tolerance: tuple[float, float],
    ) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawInputs:
    """The raw inputs of an export.

    Attributes:
      stages: as the manifest has them.
      files: path and content of each file that they have.
      goldens: inputs that were made of raw inputs, with these.
      libraries: versions of those that they stand on, by the packages' names.
      convert: what makes a model's input of a program's, by name, where the two differ.
      notes: what was decided on the user's behalf, and which raw inputs go into the bundle.
    """

    stages: tuple[Stage, ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()
    goldens: tuple[GoldenInputs, ...] = ()
    libraries: Mapping[str, str] = dataclasses.field(default_factory=dict)
    convert: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def before(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return a model, (params, inputs) to outputs, that takes the inputs of the programs."""
        return converting(apply, dict(self.convert)) if self.convert else apply


def open_raw_inputs(
    spec: ExportSpec, progress: Callable[[str], None]
) -> tuple[ExportSpec, RawInputs]:
    """Try the raw inputs of a spec, and make stages and golden inputs of them.

    Returns:
      The spec, with the inputs of the programs, and without golden raw inputs, which are inputs then;
      and the raw inputs.

    Raises:
      ExportError: a raw input cannot be used, or does not fit the model or the goldens.
    """
    rows = given_rows(spec)
    if not spec.preprocess:
        if spec.reference_preprocess is not None:
            raise ExportError(
                "reference_preprocess: expected a text or image input to compare, got none"
            )
        return spec, RawInputs()
    axes: tuple[Axis, ...] = tuple(spec.axes.values())  # type: ignore[arg-type]
    inputs: dict[str, TensorSpec] = {s.name: s for s in spec.inputs}  # type: ignore[union-attr, misc]
    opened: list[_Opened] = []
    for i, declared in enumerate(spec.preprocess):
        model = Signature(inputs=tuple(inputs.values()), outputs=(), axes=axes)
        opened.append(_open(declared, i, model, progress))
        inputs |= {changed.name: changed for changed in opened[-1].inputs}
    signature = Signature(inputs=tuple(inputs.values()), outputs=(), axes=axes)
    try:
        check_stages([one.stage for one in opened], signature)
    except InvalidField as error:
        raise ExportError(_advised(error, opened)) from None
    preparer = Preparer([one.reader(signature) for one in opened], signature, Checker(signature))
    given = rows is not None
    if rows is None:
        rows = _seeded(spec, signature, opened)
    goldens = raw_goldens(rows, signature, preparer)
    if spec.reference_preprocess is not None:
        _compare(spec, rows, signature, opened)
    notes = [note for one in opened for note in one.notes]
    notes.append(_kept(rows, opened[0].stage.kind, spec.golden if given else None))
    changed = dataclasses.replace(
        spec, inputs=signature.inputs, golden=None if given else spec.golden
    )
    images = [one for one in opened if isinstance(one, OpenedImage)]
    return changed, RawInputs(
        stages=tuple(one.stage for one in opened),
        files=tuple(file for one in opened for file in one.files),
        goldens=tuple(goldens),
        libraries=library_versions(one.stage for one in opened),
        convert={one.stage.input: one.convert for one in images},
        notes=tuple(notes),
    )


def _open(
    declared: Declared, index: int, signature: Signature, progress: Callable[[str], None]
) -> _Opened:
    if isinstance(declared, Image):
        return open_image(declared, signature)
    progress("trying the tokenizer")
    return open_text(declared, index, signature)


def _seeded(spec: ExportSpec, signature: Signature, opened: Sequence[_Opened]) -> RawRows:
    """Draw rows for all raw inputs, and the tensors beside them; the same for a seed."""
    count = max(one.wanted(signature) for one in opened)
    columns: dict[str, list[Any]] = {}
    for number, one in enumerate(opened):
        columns |= one.draw(signature, count, [spec.seed, number])
    made = {name for one in opened for name in one.stage.made}
    others = [s for s in signature.inputs if s.name not in made and not s.mask]
    sizes = {axis.name: axis.sizes[0] for axis in signature.axes}
    return RawRows(columns, dict(seeded_inputs(others, sizes, count, spec.seed)))


def _compare(
    spec: ExportSpec, rows: RawRows, signature: Signature, opened: Sequence[_Opened]
) -> None:
    if len(opened) != 1:
        raise ExportError(
            f"reference_preprocess: expected one text or image to compare with, got {len(opened)}"
        )
    assert spec.reference_preprocess is not None  # noqa: S101 (the caller looked)
    tolerance = TOLERANCE if spec.pixel_tolerance is None else tuple(spec.pixel_tolerance)
    opened[0].refuse_difference(
        spec.reference_preprocess, rows.columns, signature, (tolerance[0], tolerance[1])
    )


def _advised(error: InvalidField, opened: Sequence[_Opened]) -> str:
    """Return what is wrong with a stage by the name of its input, rather than its place in a manifest."""
    match error.path:
        case (_, int(i)):
            return f"{opened[i].label}: {error}"
        case (_, int(i), *keys):
            return f"{opened[i].label}: {error} as its {'.'.join(map(str, keys))}"
        case _:
            return f"preprocess: {error}"


def _kept(rows: RawRows, kind: str, golden: Any) -> str:
    """Return which raw inputs go into the bundle, which all who have it can read."""
    values = next(iter(rows.columns.values()))
    if golden is None:
        source = {"text": "made of the tokenizer's vocabulary", "image": "drawn from the seed"}[
            kind
        ]
    else:
        source = f"of {golden}" if isinstance(golden, str | Path) else "of golden"
    shown = ", ".join(map(_shown, values[:_SHOWN]))
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return f"the bundle holds {len(values)} golden {kind}s {source}, for all who have it: {shown}{more}"


def _shown(value: str | bytes) -> str:
    """Return a raw value so that its owner knows it again."""
    return f"{len(value):,} B" if isinstance(value, bytes) else repr(value[:_SHOWN_CHARACTERS])
