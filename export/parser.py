"""The flags of `python -m export`; `cli` makes a spec of their values."""

import argparse

from export.fields import CAST_DTYPES, PRECISIONS
from export.image_flags import add_image_flags
from export.text_flags import add_text_flags
from runtime.accelerators import CARDS, UnknownCard
from runtime.card_report import cards_of
from runtime.commandline import Parser, directory_to_write, to_read
from runtime.invocation import spelled

EXAMPLES = """\
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


def parser() -> Parser:
    """Make the parser of `python -m export`."""
    p = Parser(
        prog=spelled("python -m export"),
        description="Export a model of Flax, Keras, Equinox, Haiku or plain JAX into a bundle that is "
        "served without it.",
        epilog=spelled(EXAMPLES),
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
