"""The command line of the exporter: flags to an ExportSpec."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.attributes import find_attribute
from export.errors import ExportError, UsageError, format_error
from export.fields import CAST_DTYPES, PRECISIONS, parse_argument, read_field
from export.golden_inputs import expect_golden_file
from export.image_flags import add_image_flags, changed_images, declared_images
from export.image_input import Image
from export.input_options import OPTIONS, pair, with_options
from export.labels import labels_of
from export.params_files import expect_there
from export.preprocess import Declared, Text, read_preprocess, texts_of
from export.spec import ExportSpec
from export.text_flags import add_text_flags, changed_texts, declared_texts
from runtime.accelerators import CARDS, UnknownCard
from runtime.card_report import cards_of
from runtime.commandline import Parser, directory_to_write, to_read
from runtime.invocation import spelled
from runtime.localpaths import why_not_read
from runtime.textfiles import NotText, read_json, read_text

# What files are called that have a whole model.
MODEL_FILES = (".keras", ".h5")

_EXAMPLES = """\
examples:
  python -m export train.py:spec --params ckpt/ --out bundle/
  python -m export model.keras --out bundle/
  python -m export models.py:Classifier --config config.json --params params.msgpack \\
      --input 'x:int32[_,128]' --range x=0:49999 --output classification:logits \\
      --labels negative,neutral,positive --out bundle/
  python -m export bert.py:Encoder --params ckpt/ --input 'input_ids:int32[_,seq]' \\
      --input 'attention_mask:int32[_,seq]' --axis seq=32,64,128 --mask attention_mask \\
      --range input_ids=0:30521 --out bundle/

exit status:
  0  exported
  1  refused: the model, its files and what is asked for do not fit; or the disk does not
  2  the command line is wrong by itself
"""


# Flags whose value is the field of the same name.
_DIRECT = (
    *("params", "params_path", "allow_pickle", "dtype", "matmul_precision", "output"),
    *("golden", "seed", "name", "version", "allow_row_mixing", "unverified", "allow_infinite"),
    *("buckets", "platforms", "passthrough", "pixel_tolerance", "page_sample"),
)


def parser() -> Parser:
    """Make the parser of `python -m export`."""
    p = Parser(
        prog=spelled("python -m export"),
        description="Export a model of Flax, Keras, Equinox, Haiku or plain JAX into a bundle that is "
        "served without it.",
        epilog=spelled(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "model",
        metavar="MODEL",
        help="pkg.mod:attr or path/to/file.py:attr: an ExportSpec, a model of flax.linen, flax.nnx, "
        "Keras, Equinox or Haiku, its class or factory, or a function apply(params, inputs); or a "
        ".keras file",
    )
    p.add_argument(
        "--out", required=True, type=directory_to_write, metavar="DIR", help="the bundle to write"
    )
    p.add_argument(
        "--savedmodel",
        type=directory_to_write,
        metavar="DIR",
        help="a TensorFlow SavedModel to write as well, such as models/NAME/1 for TensorFlow Serving",
    )
    p.add_argument(
        "--tf-stablehlo",
        metavar="VERSION",
        help="StableHLO that the SavedModel is written in, such as 1.13.7, for a TensorFlow that is "
        "elsewhere (default: what the one installed reads)",
    )

    model = p.add_argument_group("model")
    model.add_argument(
        "--params",
        metavar="PATH",
        help="Orbax or Flax checkpoint directory (newest step, or a step's own directory), Flax msgpack file, safetensors file, "
        ".weights.h5 of Keras, .eqx of Equinox, or pickle",
    )
    model.add_argument(
        "--params-path", metavar="KEYS", help="subtree of the params to take, such as ema_params"
    )
    model.add_argument(
        "--allow-pickle",
        action="store_true",
        default=None,
        help="read params from a pickle, which can run any code",
    )
    model.add_argument(
        "--config",
        type=to_read,
        metavar="FILE",
        help="JSON object of constructor arguments; keys the model does not know are ignored and named",
    )
    model.add_argument(
        "--call-arg",
        action="append",
        dest="call_args",
        metavar="NAME=VALUE",
        help="an argument of the model that is no input, as a Python literal: train=False, layers=2, "
        "\"mode='eval'\"; repeatable",
    )
    model.add_argument(
        "--dtype",
        choices=CAST_DTYPES,
        help="cast floating params to this; batch statistics stay, and the drift is reported",
    )
    model.add_argument(
        "--matmul-precision",
        choices=PRECISIONS,
        help="precision that dots are lowered with (default: that of JAX's settings)",
    )
    model.add_argument("--name", help="the model's name in routes (default: model)")
    model.add_argument(
        "--version",
        help="the model's version, digits (default: 1); alone, print the exporter's own",
    )

    tensors = p.add_argument_group("inputs and outputs")
    tensors.add_argument(
        "--input",
        action="append",
        dest="inputs",
        metavar="NAME:DTYPE[_,…]",
        help="an input such as 'x:int32[_,128]' or 'ids:int32[_,seq]'; repeatable",
    )
    tensors.add_argument(
        "--range",
        action="append",
        dest="ranges",
        default=[],
        metavar="NAME=LOW:HIGH",
        help="legal values of an integer input, both ends included; enforced when serving. HIGH "
        "can be a bucketed axis, for lengths: lengths=1:seq",
    )
    tensors.add_argument(
        "--axis",
        action="append",
        dest="axes",
        metavar="NAME=[MIN..]SIZE,…",
        help="sizes of a bucketed axis that --input names; 3..32,64 where the model takes no fewer than 3",
    )
    tensors.add_argument(
        "--pad",
        action="append",
        dest="pads",
        default=[],
        metavar="NAME=VALUE",
        help="value that fills an input's bucketed axis (default: 0)",
    )
    tensors.add_argument(
        "--mask",
        action="append",
        dest="masks",
        default=[],
        metavar="NAME",
        help="input that is 1 on real elements of a bucketed axis and 0 on padding; callers may leave it out",
    )
    tensors.add_argument(
        "--output",
        metavar="FORMAT",
        help="raw (default), softmax, classification:logits, classification:probabilities, embedding or embedding:normalized, with :NAME for one of several outputs",
    )
    tensors.add_argument(
        "--labels",
        metavar="NAMES",
        help="class names: a,b,c or a file: one on each line, a JSON list, or JSON with id2label",
    )

    tensors.add_argument(
        "--passthrough",
        action="append",
        metavar="NAME",
        help="a field, such as key, that instances may have beside their inputs; servers ignore it; "
        "repeatable",
    )
    add_text_flags(p)
    add_image_flags(p)

    tensors.add_argument(
        "--page-sample",
        action="store_true",
        default=None,
        help="show the first golden row on the server's page, to all who can open it",
    )

    programs = p.add_argument_group("programs")
    programs.add_argument(
        "--buckets",
        metavar="SIZE,…",
        help="batch sizes, one program each (default: 1,4,8,16,32,64; Vertex AI batch prediction sends 64)",
    )
    programs.add_argument(
        "--platforms", metavar="NAME,…", help="what to lower for (default: cpu,cuda)"
    )

    proof = p.add_argument_group("proof")
    proof.add_argument(
        "--golden",
        type=to_read,
        metavar="FILE",
        help=".safetensors or .npz of representative inputs, or .jsonl of texts or images (default: seeded "
        "ones)",
    )
    proof.add_argument(
        "--reference-preprocess",
        metavar="FUNCTION",
        help="pkg.mod:attr or path/to/file.py:attr, the training code's own: a list of texts to ids by "
        "row, which must be the tokenizer's, or a list of images, each as bytes, to the model's inputs",
    )
    proof.add_argument(
        "--pixel-tolerance",
        metavar="MEAN,WORST",
        help="levels of 255 that pixels of --reference-preprocess may be apart from the bundle's "
        "(default: 1,8)",
    )
    proof.add_argument("--seed", type=int, help="of the seeded inputs (default: 0)")
    proof.add_argument(
        "--allow-infinite",
        action="append",
        metavar="OUTPUT",
        help="output that rightly holds inf or -inf, such as masked logits; repeatable. The program "
        "has to return them where the model does; NaN is refused all the same",
    )
    proof.add_argument(
        "--allow-row-mixing",
        action="store_true",
        default=None,
        help="export a model whose rows depend on each other; it is never batched when served",
    )
    proof.add_argument(
        "--unverified",
        action="store_true",
        default=None,
        help="export for platforms that this machine does not have; recorded",
    )

    proof.add_argument(
        "--check-gpu",
        type=_cards,
        default=[],
        metavar="CARD[,CARD]",
        help="GPUs that the bundle has to compile for and fit into, though none is here: "
        f"{', '.join(CARDS)}; needs what ./build.sh gpucheck sets up",
    )

    run = p.add_argument_group("run")
    run.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    run.add_argument("--dry-run", action="store_true", help="do everything but write and verify")
    run.add_argument("--json", action="store_true", help="print the report for machines")
    return p


def _cards(text: str) -> list[str]:
    try:
        return [card.name for card in cards_of(text)]
    except UnknownCard as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
