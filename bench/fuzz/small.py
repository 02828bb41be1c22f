"""`python -m bench.fuzz.small OUT`: a small bundle with something of everything, to be altered."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from export import TensorSpec, export_model


def scores(params: dict, ids: jax.Array, mask: jax.Array) -> dict:
    """Look up, mix, average over a mask; a custom call orthogonalizes the weights."""
    table = params["table"].astype(jnp.float32)[ids]
    basis, _ = jnp.linalg.qr(params["kernel"])
    weights = mask[..., None].astype(jnp.float32)
    mean = (jax.nn.gelu(table @ basis) * weights).sum(axis=1) / weights.sum(axis=1)
    return {"mood": mean @ params["head"] + params["bias"]}


def main(out: str) -> None:
    rng = np.random.default_rng(0)
    params = {
        "table": rng.normal(size=(16, 8)).astype(jnp.bfloat16),
        "kernel": rng.normal(size=(8, 8)).astype(np.float32),
        "head": rng.normal(size=(8, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    export_model(
        scores,
        params,
        inputs=[
            TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=15),
            TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True),
        ],
        axes={"seq": (4,)},
        buckets=(1, 4),
        output="classification:logits",
        labels=("negative", "neutral", "positive"),
        name="small",
        out=out,
    )


if __name__ == "__main__":
    main(sys.argv[1])
