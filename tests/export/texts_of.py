"""A model of sentences at export: specs with one text input, and what becomes of them."""

import jax.numpy as jnp
import numpy as np
from pytest import raises

from export import ExportError, ExportSpec, TensorSpec, Text
from export.raw_inputs import open_raw_inputs

IDS = "input_ids:int32[_,seq]"
PARAMS = {"table": np.arange(32, dtype=np.float32).reshape(16, 2)}
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=("_", "seq"), mask=True)


def apply(params, input_ids, attention_mask):
    """Return the mean of the tokens that are no padding."""
    tokens = params["table"][input_ids]
    weights = attention_mask[..., None].astype(tokens.dtype)
    return (tokens * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def spec_of(tokenizer, *inputs, text=None, **options):
    """Return a spec with one text, checked."""
    return ExportSpec(
        model=apply,
        params=PARAMS,
        inputs=inputs or (IDS, MASK),
        axes=options.pop("axes", {"seq": (4, 8)}),
        buckets=(1, 2),
        platforms="cpu",
        preprocess=[Text("text", tokenizer=tokenizer, **(text or {}))],
        **options,
    ).checked()


def opened(*arguments, **options):
    """Return the texts of a spec, and the resulting spec."""
    changed, texts = open_raw_inputs(spec_of(*arguments, **options), lambda _: None)
    return texts, changed


def refusal(*arguments, **options):
    """Return why the texts of a spec are refused."""
    with raises(ExportError) as caught:
        opened(*arguments, **options)
    return str(caught.value)
