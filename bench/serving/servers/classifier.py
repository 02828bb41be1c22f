"""The text classifier as every peer calls it: compiled ahead of time, one program a bucket.

Runs in the peers' environment, which has neither `runtime` nor `server`: what differs between two
servers must not be the model. Programs, params and form of an answer are those of our bundle.
"""

import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from examples.text_classifier.model import TextClassifier
from examples.text_classifier.reference import LABELS, MAX_LENGTH

BUCKETS = (1, 4, 8, 16, 32, 64)


class Classifier:
    """Classifies a list of texts. The params are arguments, as in a bundle."""

    def __init__(self) -> None:
        # Without it a call of the smallest program takes twice as long, most of it a thread's wake-up.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        path = Path(os.environ["BENCH_PARAMS"])
        self._params = jax.device_put(pickle.loads(path.read_bytes()))  # noqa: S301 (we wrote it)
        apply = jax.jit(lambda params, x: TextClassifier().apply({"params": params}, x))
        self._programs = {
            n: apply.lower(self._params, jax.ShapeDtypeStruct((n, MAX_LENGTH), jnp.int32)).compile()
            for n in BUCKETS
        }
        for n in BUCKETS:
            self.probabilities(np.zeros((n, MAX_LENGTH), np.int32))

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Run rows in the smallest bucket that holds them, float32[rows, 5]."""
        count = len(rows)
        bucket = next(n for n in BUCKETS if n >= count)
        if bucket > count:
            padded = np.empty((bucket, MAX_LENGTH), np.int32)
            padded[:count] = rows
            padded[count:] = rows[0]
            rows = padded
        return np.asarray(self._programs[bucket](self._params, rows))[:count]

    def classify(self, texts: list[list[int]]) -> list[dict]:
        """Answer texts of 128 tokens each."""
        return [prediction(row) for row in self.probabilities(np.array(texts, np.int32))]


def prediction(row: np.ndarray) -> dict:
    """Return an answer as the article does."""
    best = int(row.argmax())
    values = row.tolist()
    return {
        "label": LABELS[best],
        "confidence": values[best],
        "probabilities": dict(zip(LABELS, values, strict=True)),
    }
