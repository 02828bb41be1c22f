"""Train the digit classifier on scikit-learn's handwritten digits and save it.

    python -m examples.digits.train --out build/digits

Leaves in the output directory:
  checkpoint/   the params, as Orbax saves them
  golden.npz    held-out digits, for `python -m export --golden`
  request.json  one more held-out digit, as a body for `curl -d @`
  label.txt     which digit that is
"""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from examples.digits.model import DigitClassifier

BATCH = 64
GOLDEN_ROWS = 64
INK, WHITE = 16, 255  # of a pixel, in scikit-learn's digits and in an image

Arrays = tuple[np.ndarray, np.ndarray]


def digits() -> tuple[Arrays, Arrays]:
    """Read the digits, split into training and held-out (images, labels)."""
    data = load_digits()
    images = np.rint(data.images * (WHITE / INK)).astype(np.uint8)
    parts = train_test_split(images, data.target, test_size=0.2, random_state=0)
    train_images, test_images, train_labels, test_labels = parts
    return (train_images, train_labels), (test_images, test_labels)


def train(data: Arrays, *, epochs: int, seed: int = 0) -> Any:
    """Fit the classifier with Adam; returns its variables."""
    images, labels = data
    model = DigitClassifier()
    steps = len(images) // BATCH
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, epochs * steps))
    variables = jax.jit(model.init)(jax.random.key(seed), images[:1])
    state = jax.jit(optimizer.init)(variables)

    def loss(variables: Any, images: Any, labels: Any, key: Any) -> Any:
        logits = model.apply(variables, images, train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(variables: Any, state: Any, images: Any, labels: Any, key: Any) -> Any:
        slope = jax.grad(loss)(variables, images, labels, key)
        updates, state = optimizer.update(slope, state, variables)
        return optax.apply_updates(variables, updates), state

    rng = np.random.default_rng(seed)
    key = jax.random.key(seed + 1)
    for epoch in range(epochs):
        for i, rows in enumerate(np.split(rng.permutation(len(images))[: steps * BATCH], steps)):
            now = jax.random.fold_in(key, epoch * steps + i)
            variables, state = step(variables, state, images[rows], labels[rows], now)
    return variables


def accuracy(variables: Any, data: Arrays) -> float:
    """Return the share of digits that the model classifies right."""
    images, labels = data
    logits = jax.jit(DigitClassifier().apply)(variables, images)
    return float((np.asarray(logits).argmax(axis=-1) == labels).mean())


def save(out: Path, variables: Any, held_out: Arrays) -> None:
    """Write what an export and a first request need."""
    images, labels = held_out
    out.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(out.absolute() / "checkpoint", variables, force=True)
    np.savez(out / "golden.npz", image=images[1 : 1 + GOLDEN_ROWS])
    (out / "request.json").write_text(json.dumps({"instances": [images[0].tolist()]}) + "\n")
    (out / "label.txt").write_text(f"{labels[0]}\n")


def main() -> None:
    """Train, say how good it is, save."""
    parser = argparse.ArgumentParser(description="Train the digit classifier.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("build/digits"), metavar="DIR")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    data, held_out = digits()
    print(f"training on {len(data[1])} digits for {arguments.epochs} epochs", flush=True)
    variables = train(data, epochs=arguments.epochs)
    print(f"held-out accuracy {accuracy(variables, held_out):.4f} on {len(held_out[1])} digits")
    save(arguments.out, variables, held_out)
    print(f"saved in {arguments.out}")


if __name__ == "__main__":
    main()
