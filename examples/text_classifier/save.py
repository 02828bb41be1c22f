"""Initialize the text classifier and save it in two ways.

    python -m examples.text_classifier.save --out build/text_classifier

Leaves in the output directory:
  checkpoint/   what `flax.training.checkpoints` writes
  model.pkl     the params, pickled
  config.json   the constructor's arguments, and how long a text may be
"""

import argparse
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples.text_classifier.model import TextClassifier

CONFIG = {
    "vocab_size": 50000,
    "embed_dim": 256,
    "hidden_dim": 512,
    "num_classes": 5,
    "max_seq_length": 128,
}


def initial_params() -> Any:
    """Make the params: those of a fixed seed, since the model is never trained."""
    tokens = np.ones((1, CONFIG["max_seq_length"]), np.int32)
    return TextClassifier().init(jax.random.PRNGKey(42), tokens)["params"]


def save_checkpoint(out: Path, params: Any) -> None:
    """Save as a Flax checkpoint."""
    # Importing it warns that there is no TensorFlow, which nothing here wants.
    logging.getLogger("absl").setLevel(logging.ERROR)
    from flax.training import checkpoints

    folder = out.absolute() / "checkpoint"
    checkpoints.save_checkpoint(folder, target=params, step=0, overwrite=True)


def save_pickle(out: Path, params: Any) -> None:
    """Save as a pickle, and beside it what the constructor wants to know."""
    with (out / "model.pkl").open("wb") as f:
        pickle.dump(jax.tree.map(np.asarray, params), f)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def main() -> None:
    """Save in both ways."""
    parser = argparse.ArgumentParser(description="Save the text classifier.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("build/text_classifier"), metavar="DIR")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    params = initial_params()
    save_checkpoint(out, params)
    save_pickle(out, params)
    print(f"saved in {out}")


if __name__ == "__main__":
    main()
