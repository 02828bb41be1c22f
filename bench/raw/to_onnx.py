"""Run by the peer's Python: MiniLM as an ONNX file, which the peer's ONNX engine needs.

python to_onnx.py FOLDER OUT
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUT = "last_hidden_state"


def main(folder: str, out: str) -> None:
    """Write the model of a folder of `save_pretrained`, with its configuration and tokenizer."""
    # In the form that ONNX Runtime's optimizer knows, and fuses.
    options = {"attn_implementation": "eager", "add_pooling_layer": False}
    model = AutoModel.from_pretrained(folder, **options).eval()
    tokens = AutoTokenizer.from_pretrained(folder)
    example = tokens(["a sentence", "another, longer sentence"], padding=True, return_tensors="pt")
    axes = {0: "batch", 1: "seq"}
    model.config.save_pretrained(out)
    tokens.save_pretrained(out)
    torch.onnx.export(
        model,
        tuple(example[name] for name in _INPUTS),
        str(Path(out) / "model.onnx"),
        input_names=list(_INPUTS),
        output_names=[_OUTPUT],
        dynamic_axes=dict.fromkeys((*_INPUTS, _OUTPUT), axes),
        opset_version=14,
        dynamo=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
