"""A small convolutional network for handwritten digits, and how it is exported."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from export import ExportSpec, Image


class DigitClassifier(nn.Module):
    """Tells handwritten digits apart.

    Pixels are scaled in here, so that clients send images as they are.
    """

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        """Score images.

        Args:
          image: uint8[_, 8, 8], ink from 0 to 255, white on black.
          train: switches dropout on, which needs a `dropout` key.

        Returns:
          Logits, float32[_, 10].
        """
        x = image[..., None].astype(jnp.float32) / 255.0
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(64, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((len(x), -1))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


spec = ExportSpec(
    model=DigitClassifier(),
    inputs=["image:uint8[_,8,8]"],
    # Callers may send a photograph or a drawing, of any size.
    preprocess=[Image("image", 8, channels="L")],
    output="classification:logits",
    labels=tuple("0123456789"),
    name="digits",
)
