"""Make the bundle that tests/runtime/test_frozen.py keeps readable.

    python -m tests.data.freeze mood tests/data/bundles/format-1_2026-11-22
    python -m tests.data.freeze lengths tests/data/bundles/format-3_2026-11-28
    python -m tests.data.freeze suppressed tests/data/bundles/format-4_2026-11-30
    python -m tests.data.freeze pairs tests/data/bundles/format-4-texts_2026-11-30

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
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from export import TensorSpec, Text, export_model
from tests.tokenizer_files import words

# The dates in the bundles' names: 2026-11-22, 2026-11-28, 2026-11-30 and the same again.
MOOD_EPOCH = "1795305600"
LENGTHS_EPOCH = "1795824000"
SUPPRESSED_EPOCH = "1795996800"
PAIRS_EPOCH = SUPPRESSED_EPOCH


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


def freeze_mood(out: str) -> None:
    """Export the model, with everything in it that formats 1 and 2 can say."""
    os.environ["SOURCE_DATE_EPOCH"] = MOOD_EPOCH
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


def freeze_lengths(out: str) -> None:
    """Export a sum over each row's own length, which format 3 can say."""
    os.environ["SOURCE_DATE_EPOCH"] = LENGTHS_EPOCH

    def total(params: jax.Array, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        real = jnp.arange(ids.shape[1]) < lengths[:, None]
        return (params[ids] * real[..., None]).sum(axis=1)

    export_model(
        total,
        np.arange(32, dtype=np.float32).reshape(16, 2),
        inputs=[
            TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=15),
            TensorSpec(name="lengths", dtype="int32", shape=("_",), minimum=1, maximum="seq"),
        ],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
        name="total",
        out=out,
    )


def freeze_suppressed(out: str) -> None:
    """Export logits of which one is never possible, and scores that are masked: format 4."""
    os.environ["SOURCE_DATE_EPOCH"] = SUPPRESSED_EPOCH

    def choose(params: jax.Array, ids: jax.Array) -> dict[str, jax.Array]:
        rows = params[ids]
        return {
            "logits": rows.sum(axis=1).at[:, 1].set(-jnp.inf),
            "scores": jnp.where(ids == 0, -jnp.inf, rows[..., 0]),
        }

    table = np.arange(48, dtype=np.float32).reshape(16, 3) / 64
    table[0] = 0  # padding adds nothing
    export_model(
        choose,
        table,
        inputs=[TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=15)],
        axes={"seq": (4, 8)},
        buckets=(1, 4),
        output="classification:logits:logits",
        labels=("stay", "never", "go"),
        allow_infinite=("logits", "scores"),
        name="choose",
        out=out,
    )


def freeze_pairs(out: str) -> None:
    """Export vectors of pairs of texts, with everything that format 4 can say of these."""
    os.environ["SOURCE_DATE_EPOCH"] = PAIRS_EPOCH

    def embed(
        params: jax.Array, input_ids: jax.Array, token_type_ids: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        rows = params[input_ids] * (1 + token_type_ids)[..., None]
        return {"vector": (rows * mask[..., None]).sum(axis=1), "kinds": token_type_ids}

    inputs = [
        TensorSpec(name=name, dtype="int32", shape=("_", "seq"), mask=name == "mask")
        for name in ("input_ids", "token_type_ids", "mask")
    ]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        tokenizer.write_bytes(words())
        export_model(
            embed,
            np.arange(48, dtype=np.float32).reshape(16, 3) / 64,
            inputs=inputs,
            axes={"seq": (4, 8)},
            buckets=(1, 4),
            preprocess=[Text("text", tokenizer=tokenizer, pair="second", truncate=True)],
            passthrough=("key",),
            output="embedding:normalized:vector",
            name="pairs",
            out=out,
        )


if __name__ == "__main__":
    kinds = {
        "mood": freeze_mood,
        "lengths": freeze_lengths,
        "suppressed": freeze_suppressed,
        "pairs": freeze_pairs,
    }
    kinds[sys.argv[1]](sys.argv[2])
