"""A text classifier: the mean of its tokens' embeddings, then two dense layers."""

import jax
from flax import linen as nn


class TextClassifier(nn.Module):
    """Scores a text in five classes.

    Attributes:
      vocab_size: number of token ids.
      embed_dim: size of an embedding.
      hidden_dim: size of the hidden layer.
      num_classes: number of classes.
    """

    vocab_size: int = 50000
    embed_dim: int = 256
    hidden_dim: int = 512
    num_classes: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Score texts.

        Args:
          x: token ids, int32[_, 128]. Padding counts as tokens: the mean has no mask.

        Returns:
          Probabilities, float32[_, 5].
        """
        x = nn.Embed(self.vocab_size, self.embed_dim)(x)
        x = x.mean(axis=1)
        x = nn.relu(nn.Dense(self.hidden_dim)(x))
        return nn.softmax(nn.Dense(self.num_classes)(x))
