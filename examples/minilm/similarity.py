"""Compare sentences with the exported model: `runtime` alone, no Flax.

python -m examples.minilm.similarity build/minilm/bundle ["A sentence." ...]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime import Model, load

SENTENCES = (
    "A man is playing the guitar on stage.",
    "A guitarist performs on a stage.",
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping by the sunny window.",
    "The central bank raised interest rates by half a point.",
    "Interest rates went up after the central bank's decision.",
)


def embed(model: Model, sentences: Sequence[str]) -> np.ndarray:
    """Encode sentences as unit vectors, float32[_, 384]."""
    return model.predict({"text": list(sentences)})["embedding"]


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
