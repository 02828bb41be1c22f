"""Digits in Keras 3: statistics, dropout and a scaling inside of the model."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

INPUTS = ()  # the model has its own


def train(images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Fit a small convolutional network."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8), name="image"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(images, labels, batch_size=64, epochs=15, verbose=0)
    return model


def answer(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return logits, as Keras computes them."""
    return np.asarray(model(images.astype(np.float32), training=False))


def what_to_export(model: keras.Model) -> tuple[keras.Model, None]:
    """Return the model, which has its weights."""
    return model, None
