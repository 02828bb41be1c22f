"""Make the bundle that tests/runtime/test_frozen.py keeps readable.

    python -m tests.data.freeze tests/data/bundles/format-1_2026-11-22

A frozen bundle stands for all those that were made at its date and are in use since. It is
NEVER regenerated in place: a test that fails on it has found a release that cannot read
what people have, and the release is what has to change. When the format changes, freeze
another bundle beside it, named by its format and date, and keep the old ones.

Format 2 is that of refreshed bundles, so its frozen one is the first, refreshed:

    python -m runtime refresh tests/data/bundles/format-1_2026-11-22 --out …/format-2_2026-11-23

Reading its manifest is promised for ever; running its programs for as long as
StableHLO promises it, five years: where a new jax refuses a wrapper the runtime takes what is
inside. When a new jax refuses that as well, retire the tests that run it, and freeze a younger
bundle; do not "fix" the old one.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from export import TensorSpec, export_model

# The date in the bundle's name: 2026-11-22.
EPOCH = "1795305600"


class Mood(nn.Module):
    """The mood of a sequence of tokens, and a score for each token."""

    @nn.compact
    def __call__(self, ids, mask):
        """Answer {"mood": float32[_, 3], "scores": float32[_, seq, 2]}."""
        table = nn.Embed(16, 8, param_dtype=jnp.bfloat16, dtype=jnp.float32)(ids)
        weights = mask[..., None].astype(jnp.float32)
        mean = (table * weights).sum(axis=1) / weights.sum(axis=1)
        hidden = nn.relu(nn.Dense(8)(mean))
        return {"mood": nn.softmax(nn.Dense(3)(hidden)), "scores": nn.Dense(2)(table)}


def freeze(out: str) -> None:
    """Export the model, with everything in it that the format can say."""
    os.environ["SOURCE_DATE_EPOCH"] = EPOCH
    model = Mood()
    ids = np.zeros((1, 4), np.int32)
    export_model(
        model,
        model.init(jax.random.key(42), ids, ids + 1),
        inputs=[
            TensorSpec(
                name="ids", dtype="int32", shape=("_", "seq"), pad=15, minimum=0, maximum=15
            ),
            TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True),
        ],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
        output="classification:probabilities:mood",
        labels=("negative", "neutral", "positive"),
        matmul_precision="highest",
        name="mood",
        version="7",
        out=out,
    )


if __name__ == "__main__":
    freeze(sys.argv[1])
