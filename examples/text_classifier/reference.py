"""How the text classifier is served without any of this: pad, jit, format.

Kept to compare with. The first request of every batch size waits for a compile.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from examples.text_classifier.model import TextClassifier

LABELS = ("very_negative", "negative", "neutral", "positive", "very_positive")
MAX_LENGTH = 128

_apply = jax.jit(TextClassifier().apply)


def pad(texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Cut or fill each text's token ids to the one length that the model takes."""
    rows = np.zeros((len(texts), MAX_LENGTH), np.int32)
    for row, tokens in zip(rows, texts, strict=True):
        kept = list(tokens)[:MAX_LENGTH]
        row[: len(kept)] = kept
    return rows


def predict(params: Any, texts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Classify texts, given as token ids."""
    probabilities = np.asarray(_apply({"params": params}, pad(texts)))
    return [
        {
            "label": LABELS[int(row.argmax())],
            "confidence": float(row.max()),
            "probabilities": dict(zip(LABELS, row.tolist(), strict=True)),
        }
        for row in probabilities
    ]
