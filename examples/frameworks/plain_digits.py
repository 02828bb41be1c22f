"""Digits in JAX alone: a function of params and images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

INPUTS = ("image:float32[_,8,8]",)


def apply(params: Any, image: jax.Array) -> jax.Array:
    """Score images, float32[_, 8, 8] from 0 to 255."""
    x = image.reshape((len(image), -1)) / 255
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
    return x @ params[-1]["weight"] + params[-1]["bias"]


def train(images: np.ndarray, labels: np.ndarray) -> Any:
    """Fit a network of two layers with Adam; return its params."""
    images = images.astype(np.float32)
    keys = jax.random.split(jax.random.key(0))
    params = [
        {"weight": jax.random.normal(key, size) / np.sqrt(size[0]), "bias": jnp.zeros(size[1])}
        for key, size in zip(keys, [(64, 256), (256, 10)], strict=True)
    ]
    optimizer = optax.adam(3e-3)
    optimizing = optimizer.init(params)

    @jax.jit
    def step(params: Any, optimizing: Any, rows: Any, wanted: Any) -> Any:
        def loss(params: Any) -> Any:
            scores = apply(params, rows)
            return optax.softmax_cross_entropy_with_integer_labels(scores, wanted).mean()

        updates, optimizing = optimizer.update(jax.grad(loss)(params), optimizing)
        return optax.apply_updates(params, updates), optimizing

    rng = np.random.default_rng(0)
    for _ in range(1500):
        rows = rng.choice(len(images), 64, replace=False)
        params, optimizing = step(params, optimizing, images[rows], labels[rows])
    return params


def answer(params: Any, images: np.ndarray) -> np.ndarray:
    """Return logits, as JAX computes them."""
    return np.asarray(apply(params, images.astype(np.float32)))


def what_to_export(params: Any) -> tuple[Any, Any]:
    """Return the function and its params."""
    return apply, params
