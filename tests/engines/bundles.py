"""Small bundles for the tests of engines: `python -m tests.engines.bundles FOLDER`.

Exported by the project's own environment, since those of the engines cannot.
"""

import sys
from pathlib import Path

import numpy as np

from export import Image, TensorSpec, Text, export_model
from tests import tokenizer_files

LABELS = ("left", "right")


def classify(params, x):
    """Return a logit for each side."""
    return x @ params["weights"]


def average(params, ids, mask):
    """Return the masked mean of the embeddings of ids."""
    weights = mask[..., None].astype("float32")
    return {"mean": (params["table"][ids] * weights).sum(axis=1) / weights.sum(axis=1)}


def sentence(params, input_ids, attention_mask):
    """Return the mean of the embeddings of a text's tokens."""
    return average(params, input_ids, attention_mask)


def sides(out, name, weights, buckets):
    """Export a classifier of two numbers."""
    export_model(
        classify,
        {"weights": np.array(weights, np.float32)},
        inputs=["x:float32[_,2]"],
        buckets=buckets,
        output="classification:logits",
        labels=LABELS,
        name=name,
        platforms="cpu",
        out=out / name,
    )


def main(out):
    """Export all of them."""
    sides(out, "sides", [[1, -1], [-1, 1]], (1, 8, 32))
    sides(out, "other", [[-1, 1], [1, -1]], (4,))
    table = np.random.default_rng(3).normal(size=(16, 4)).astype(np.float32)
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=15)
    mask = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True)
    export_model(
        average,
        {"table": table},
        inputs=[ids, mask],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
        name="averages",
        platforms="cpu",
        out=out / "averages",
    )
    tokenizer = out / "tokenizer.json"
    tokenizer.write_bytes(tokenizer_files.words())
    export_model(
        sentence,
        {"table": table},
        inputs=[
            "input_ids:int32[_,seq]",
            TensorSpec(name="attention_mask", dtype="int32", shape=("_", "seq"), mask=True),
        ],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
        name="sentences",
        platforms="cpu",
        preprocess=[Text("text", tokenizer=tokenizer)],
        out=out / "sentences",
    )
    export_model(
        lambda params, image: {"mean": image.mean(axis=(1, 2)) * params["one"]},
        {"one": np.ones((), np.float32)},
        inputs=["image:float32[_,2,2,3]"],
        buckets=(1, 4),
        name="pictures",
        platforms="cpu",
        preprocess=[Image("image", 2)],
        out=out / "pictures",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
