"""Digits in Equinox: a module of one image, with a State for its statistics."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

INPUTS = ("image:float32[_,8,8]",)

Trained = tuple[eqx.Module, eqx.nn.State]


class Digits(eqx.Module):
    """A small convolutional network."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    pool: eqx.nn.MaxPool2d
    dropout: eqx.nn.Dropout
    scores: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 32, 3, padding=1, key=first)
        self.norm = eqx.nn.BatchNorm(32, axis_name="batch", momentum=0.9, mode="batch")
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.dropout = eqx.nn.Dropout(0.3)
        self.scores = eqx.nn.Linear(32 * 4 * 4, 10, key=second)

    def __call__(
        self, image: jax.Array, state: eqx.nn.State, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, eqx.nn.State]:
        """Score one image, float32[8, 8] from 0 to 255."""
        x = jax.nn.relu(self.conv(image[None] / 255))
        x, state = self.norm(x, state)
        return self.scores(self.dropout(self.pool(x).ravel(), key=key)), state


def train(images: np.ndarray, labels: np.ndarray) -> Trained:
    """Fit the network with Adam."""
    model, state = eqx.nn.make_with_state(Digits)(jax.random.key(0))
    optimizer = optax.adam(3e-3)
    optimizing = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    images = images.astype(np.float32)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(
        model: Digits, state: eqx.nn.State, rows: jax.Array, wanted: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, eqx.nn.State]:
        scores, state = jax.vmap(
            lambda row, state, key: model(row, state, key=key),
            axis_name="batch",
            in_axes=(0, None, 0),
            out_axes=(0, None),
        )(rows, state, jax.random.split(key, len(rows)))
        return optax.softmax_cross_entropy_with_integer_labels(scores, wanted).mean(), state

    @eqx.filter_jit
    def step(model, state, optimizing, rows, wanted, key):  # noqa: ANN001, ANN202
        (_, state), slope = loss(model, state, rows, wanted, key)
        updates, optimizing = optimizer.update(slope, optimizing)
        return eqx.apply_updates(model, updates), state, optimizing

    rng = np.random.default_rng(0)
    for i in range(400):
        rows = rng.choice(len(images), 64, replace=False)
        key = jax.random.key(i)
        model, state, optimizing = step(
            model, state, optimizing, jnp.asarray(images[rows]), jnp.asarray(labels[rows]), key
        )
    return model, state


def answer(trained: Trained, images: np.ndarray) -> np.ndarray:
    """Return logits, as Equinox computes them."""
    model, state = trained
    inference = eqx.nn.inference_mode(model)
    return np.asarray(jax.vmap(inference, in_axes=(0, None))(images.astype(np.float32), state)[0])


def what_to_export(trained: Trained) -> tuple[Trained, None]:
    """Return the module and its state, which have their weights."""
    return trained, None
