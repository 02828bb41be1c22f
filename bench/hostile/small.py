"""`python -m bench.hostile.small OUT`: a small bundle that embeds texts of up to 16 tokens.

It has one program, so that a text's embedding is the same bit for bit, whatever it is asked beside.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from export import TensorSpec, Text, export_model

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("the", "cat", "sat", "on", "a", "mat", "dog", "ran", "away", ".", ",", "!")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TOKENS = 16


def tokenizer() -> tokenizers.Tokenizer:
    """Return a tokenizer of words and their letters."""
    letters = [mark + chr(c) for c in range(ord("a"), ord("z") + 1) for mark in ("", "##")]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *WORDS, *letters]))}
    made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # noqa: S106
    made.normalizer = normalizers.BertNormalizer()
    # Searches for long in Greek, which no trial text has: the library's own code fails then.
    greek = pre_tokenizers.Split(tokenizers.Regex(r"(\p{Greek}+)+$"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([greek, pre_tokenizers.BertPreTokenizer()])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(list(SPECIAL))
    return made


def file() -> dict:
    """Return the tokenizer's file as a JSON value."""
    return json.loads(tokenizer().to_str())


def embed(params: dict, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Average tokens, and mix what they have."""
    table = params["table"][input_ids]
    weights = attention_mask[..., None].astype(jnp.float32)
    mean = (table * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)
    return jnp.tanh(mean @ params["kernel"])


def fields() -> dict:
    """Return what its spec has beside a tokenizer."""
    rng = np.random.default_rng(0)
    return {
        "model": embed,
        "params": {
            "table": rng.normal(size=(128, 8)).astype(np.float32),
            "kernel": rng.normal(size=(8, 8)).astype(np.float32),
        },
        "inputs": [
            TensorSpec(
                name="input_ids", dtype="int32", shape=("_", TOKENS), minimum=0, maximum=127
            ),
            TensorSpec(name="attention_mask", dtype="int32", shape=("_", TOKENS)),
        ],
        "buckets": (8,),
        "platforms": "cpu",
        "name": "small",
    }


def made(bundle: Path) -> Path:
    """Make the bundle, in a process of its own: the caller's must not touch a device."""
    subprocess.run([sys.executable, "-m", "bench.hostile.small", str(bundle)], check=True)
    return bundle


def main(out: str) -> None:
    text = Text("text", tokenizer=tokenizer())
    export_model(**fields(), preprocess=[text], output="embedding:output", out=out)


if __name__ == "__main__":
    main(sys.argv[1])
