"""Digits in Haiku: a function with a state, and params beside it."""

from typing import Any

import haiku as hk
import jax
import numpy as np
import optax

INPUTS = ("image:float32[_,8,8]",)

Trained = tuple[Any, Any]


def score(image: jax.Array, is_training: bool) -> jax.Array:
    """Score images, float32[_, 8, 8] from 0 to 255."""
    x = jax.nn.relu(hk.Conv2D(32, 3)(image[..., None] / 255))
    x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training)
    x = hk.Flatten()(hk.MaxPool(2, 2, "SAME")(x))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.3, x)
    return hk.Linear(10)(x)


net = hk.transform_with_state(score)


def train(images: np.ndarray, labels: np.ndarray) -> Trained:
    """Fit the network with Adam; return its params and its state."""
    images = images.astype(np.float32)
    params, state = net.init(jax.random.key(0), images[:1], is_training=True)
    optimizer = optax.adam(3e-3)
    optimizing = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, optimizing: Any, rows: Any, wanted: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            scores, new = net.apply(params, state, key, rows, is_training=True)
            return optax.softmax_cross_entropy_with_integer_labels(scores, wanted).mean(), new

        slope, new = jax.grad(loss, has_aux=True)(params)
        updates, optimizing = optimizer.update(slope, optimizing)
        return optax.apply_updates(params, updates), new, optimizing

    rng = np.random.default_rng(0)
    for i in range(400):
        rows = rng.choice(len(images), 64, replace=False)
        params, state, optimizing = step(
            params, state, optimizing, images[rows], labels[rows], jax.random.key(i)
        )
    return params, state


def answer(trained: Trained, images: np.ndarray) -> np.ndarray:
    """Return logits, as Haiku computes them."""
    scores, _ = net.apply(*trained, None, images.astype(np.float32), is_training=False)
    return np.asarray(scores)


def what_to_export(trained: Trained) -> tuple[hk.TransformedWithState, Trained]:
    """Return the transformed function, and its params and state."""
    return net, trained
