"""The command line of the exporter: flags to an ExportSpec. `parser` has the flags."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.attributes import find_attribute
from export.errors import ExportError, UsageError, format_error
from export.fields import parse_argument, read_field
from export.golden_inputs import expect_golden_file
from export.image_flags import changed_images, declared_images
from export.image_input import Image
from export.input_options import OPTIONS, pair, with_options
from export.labels import labels_of
from export.params_files import expect_there
from export.preprocess import Declared, Text, read_preprocess, texts_of
from export.spec import ExportSpec
from export.text_flags import changed_texts, declared_texts
from runtime.localpaths import why_not_read
from runtime.textfiles import NotText, read_json, read_text

# What files are called that have a whole model.
MODEL_FILES = (".keras", ".h5")

# Flags whose value is the field of the same name.
_DIRECT = (
    *("params", "params_path", "allow_pickle", "dtype", "matmul_precision", "output"),
    *("golden", "seed", "name", "version", "allow_row_mixing", "unverified", "allow_infinite"),
    *("buckets", "platforms", "passthrough", "pixel_tolerance", "page_sample"),
)


def spec_from(arguments: argparse.Namespace) -> tuple[ExportSpec, list[str]]:
    """Make the spec that the command line asks for.

    Returns:
      The spec, and notes for the user.

    Raises:
      UsageError: a flag does not read.
      ExportError: the model is not there, or the configuration is not for it.
    """
    # Files first: importing a model can take long.
    config = _read_config(arguments.config)
    try:
        labels = None if arguments.labels is None else labels_of(arguments.labels, "--labels")
    except ExportError as error:
        raise UsageError(str(error)) from None
    if arguments.golden is not None:
        expect_golden_file(arguments.golden)
    if arguments.params:
        expect_there(arguments.params)
    try:
        texts, images = declared_texts(arguments), declared_images(arguments)
    except ExportError as error:
        raise UsageError(str(error)) from None
    found = _find(arguments.model)
    spec, notes = _resolve(found, config)
    if not arguments.inputs:
        from export.models.registry import with_own_inputs

        spec = with_own_inputs(spec)
    try:
        changes = _changes(spec, labels, arguments)
        changes |= preprocess_changes(spec, texts, images, arguments)
    except ExportError as error:
        raise UsageError(str(error)) from None
    return dataclasses.replace(spec, **changes), notes


def _changes(
    spec: ExportSpec, labels: tuple[str, ...] | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the fields that flags set, each in its one form."""
    named: dict[str, Any] = {name: getattr(arguments, name) for name in _DIRECT}
    named["labels"] = labels
    if arguments.call_args:
        asked = dict(parse_argument(text) for text in arguments.call_args)
        named["call_args"] = {**read_field("call_args", spec.call_args), **asked}
    if arguments.axes:
        named["axes"] = dict(pair("--axis", text, "seq=32,64,128") for text in arguments.axes)
    options = {name: getattr(arguments, f"{name}s") for name in OPTIONS}
    if arguments.inputs or any(options.values()):
        declared = read_field("inputs", arguments.inputs or spec.inputs)
        named["inputs"] = with_options(declared, options, "--")
    return {name: read_field(name, value) for name, value in named.items() if value is not None}


def preprocess_changes(
    spec: ExportSpec,
    texts: Sequence[Text],
    images: Sequence[Image],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Return the fields that the flags of texts and images set.

    Args:
      spec: of MODEL.
      texts: that `declared_texts` returned; those of the spec are replaced by any.
      images: likewise, of `declared_images`.
      arguments: of the command line.

    Raises:
      ExportError: a flag does not read, or names no text or image.
    """
    own = read_preprocess(spec.preprocess)
    found: list[Declared] = [
        *changed_texts(texts_of(own), texts, arguments),
        *changed_images([one for one in own if isinstance(one, Image)], images, arguments),
    ]
    changes: dict[str, Any] = {}
    if len(found) != len(own) or not all(one in own for one in found):
        changes["preprocess"] = read_preprocess(found)
    if arguments.reference_preprocess:
        changes["reference_preprocess"] = find_attribute(arguments.reference_preprocess)
    return changes


def _resolve(found: Any, config: Mapping[str, Any] | None) -> tuple[ExportSpec, list[str]]:
    """Make a spec of what was named; a class or factory is called with the configuration."""
    from export.models.factories import (
        expect_model,
        is_factory,
        known_arguments,
        takes_key,
        takes_rngs,
    )

    if not is_factory(found):
        if config is not None:
            kind = type(found).__name__
            raise ExportError(f"--config: expected a class or factory, got MODEL of type {kind}")
        return (found if isinstance(found, ExportSpec) else ExportSpec(model=found)), []
    known, ignored = known_arguments(found, config or {})
    notes = [f"--config: ignored {', '.join(ignored)}, which the model does not take"]
    made: Any
    if takes_rngs(found) or takes_key(found):
        # Only the shapes of what has random weights are wanted: it is made later, without these.
        made = functools.partial(found, **known)
    else:
        try:
            made = found(**known)
        except Exception as error:
            name = getattr(found, "__name__", "model")
            raise ExportError(f"{name}: {format_error(error)}") from error
    if not isinstance(made, ExportSpec):
        expect_model(made, found)
    spec = made if isinstance(made, ExportSpec) else ExportSpec(model=made)
    return spec, notes if ignored else []


def _find(text: str) -> Any:
    """Return what MODEL names: an attribute of a module or file, or what a file has saved."""
    if not text.endswith(MODEL_FILES):
        return find_attribute(text)
    if reason := why_not_read(text):
        raise UsageError(f"model: {reason}")
    from export.models.keras_models import load_keras

    return load_keras(Path(text))


def _read_config(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        value = read_json(read_text(path))
    except NotText as error:
        raise ExportError(f"--config {path}: expected a JSON file, got {error}") from None
    if not isinstance(value, dict):
        raise ExportError(f"--config {path}: expected a JSON object, got {type(value).__name__}")
    return value
