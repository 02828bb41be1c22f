"""Train the text classifier, and a tokenizer, on sentences of film reviews.

    python -m examples.text_classifier.train --out build/reviews

Leaves in the output directory:
  tokenizer.json  trained on the same sentences
  checkpoint/     what `flax.training.checkpoints` writes
  config.json     the constructor's arguments
  golden.jsonl    sentences that training never saw, for `python -m export --golden`
  request.json    three more, as a body for `curl -d @`
"""

import argparse
import functools
import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from examples.text_classifier.model import TextClassifier
from examples.text_classifier.reference import LABELS, pad
from examples.text_classifier.save import save_checkpoint

REVIEWS = Path(__file__).with_name("reviews.tsv.gz")
# Ratings are means of twenty people's, from -4 to 4.
BOUNDS = (-1.5, -0.4, 0.4, 1.5)
VOCABULARY = 6000
CONFIG = {"vocab_size": VOCABULARY, "embed_dim": 64, "hidden_dim": 128}
HELD_OUT = 600
BATCH = 64
GOLDEN_ROWS = 32
# Share of the tokens that training hides, so that no single one decides.
HIDDEN = 0.2
REQUESTED = (
    "A wonderful film, funny and moving from beginning to end.",
    "Dull, lifeless and far too long.",
    "A film about a family that moves to Paris.",
)


class Reviews(NamedTuple):
    """Sentences, each with the number of its label."""

    texts: list[str]
    labels: np.ndarray


def reviews() -> tuple[Reviews, Reviews]:
    """Read the sentences, split into training and held-out ones."""
    with gzip.open(REVIEWS, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    labels = np.digitize([float(rating) for rating, _ in rows], BOUNDS)
    texts = [text for _, text in rows]
    return Reviews(texts[HELD_OUT:], labels[HELD_OUT:]), Reviews(
        texts[:HELD_OUT], labels[:HELD_OUT]
    )


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Learn the pieces of words that these texts are made of."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> np.ndarray:
    """Return texts as the model takes them."""
    return pad([one.ids for one in tokenizer.encode_batch(texts)])


def train(rows: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int = 0) -> Any:
    """Fit the classifier with Adam; returns its params."""
    model = TextClassifier(**CONFIG)
    steps = len(rows) // BATCH
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, epochs * steps), weight_decay=0.01)
    params = jax.jit(model.init)(jax.random.key(seed), rows[:1])["params"]
    state = jax.jit(optimizer.init)(params)

    def loss(params: Any, rows: Any, labels: Any) -> Any:
        scores = model.apply({"params": params}, rows)
        return -jax.numpy.log(scores[jax.numpy.arange(BATCH), labels] + 1e-9).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, rows: Any, labels: Any, key: Any) -> Any:
        hidden = jax.random.bernoulli(key, HIDDEN, rows.shape) & (rows > 0)
        slope = jax.grad(loss)(params, jax.numpy.where(hidden, 1, rows), labels)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(seed)
    key = jax.random.key(seed + 1)
    for epoch in range(epochs):
        for i, some in enumerate(np.split(rng.permutation(len(rows))[: steps * BATCH], steps)):
            now = jax.random.fold_in(key, epoch * steps + i)
            params, state = step(params, state, rows[some], labels[some], now)
    return params


def predicted(params: Any, rows: np.ndarray) -> np.ndarray:
    """Return the number of the likeliest label of each row."""
    scores = jax.jit(TextClassifier(**CONFIG).apply)({"params": params}, rows)
    return np.asarray(scores).argmax(axis=-1)


def main() -> None:
    """Train both, say how good they are, save."""
    parser = argparse.ArgumentParser(description="Train on film reviews.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("build/reviews"), metavar="DIR")
    parser.add_argument("--epochs", type=int, default=7)
    arguments = parser.parse_args()
    data, held_out = reviews()
    print(f"training on {len(data.texts)} sentences for {arguments.epochs} epochs", flush=True)
    tokenizer = train_tokenizer(data.texts)
    params = train(encode(tokenizer, data.texts), data.labels, epochs=arguments.epochs)
    found = predicted(params, encode(tokenizer, held_out.texts))
    commonest = np.bincount(held_out.labels).max() / HELD_OUT
    print(
        f"{HELD_OUT} held-out sentences: {(found == held_out.labels).mean():.2f} have the label of "
        f"{len(LABELS)}, {(abs(found - held_out.labels) <= 1).mean():.2f} that or the next; the "
        f"commonest label has {commonest:.2f}"
    )
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    save_checkpoint(out, jax.tree.map(np.asarray, params))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    golden = (json.dumps({"text": text}) for text in held_out.texts[:GOLDEN_ROWS])
    (out / "golden.jsonl").write_text("\n".join(golden) + "\n")
    (out / "request.json").write_text(json.dumps({"instances": REQUESTED}) + "\n")
    print(f"saved in {out}")


if __name__ == "__main__":
    main()
