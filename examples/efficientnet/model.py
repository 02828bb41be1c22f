"""EfficientNet-Lite0 in flax.nnx, with its published weights: an image in, one of 1,000 classes out.

https://arxiv.org/abs/1905.11946, and https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
for Lite: no squeeze-and-excitation, and ReLU6 in the place of swish.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from examples.efficientnet.weights import convert, published, read
from export import ExportSpec, TensorSpec

SIZE = 224
CLASSES = 1000
# Of each stage: blocks, kernel, stride of the first, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
EPSILON = 1e-3


class ConvNorm(nnx.Module):
    """A convolution without bias, and a normalization by the statistics of the training."""

    def __init__(
        self,
        inward: int,
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            inward,
            out,
            (kernel, kernel),
            strides=stride,
            feature_group_count=groups,
            use_bias=False,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(out, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32[_, h, w, inward] to float32[_, h / stride, w / stride, out]."""
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """An inverted residual: expand the channels, filter each by itself, project them back."""

    def __init__(
        self, inward: int, out: int, kernel: int, *, stride: int, expansion: int, rngs: nnx.Rngs
    ) -> None:
        wide = inward * expansion
        self.expand = ConvNorm(inward, wide, 1, rngs=rngs) if expansion > 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride=stride, groups=wide, rngs=rngs)
        self.project = ConvNorm(wide, out, 1, rngs=rngs)
        self.residual = stride == 1 and inward == out

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float32[_, h, w, inward] to float32[_, h / stride, w / stride, out]."""
        y = nnx.relu6(self.expand(x)) if self.expand else x
        y = self.project(nnx.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nnx.Module):
    """Classifies images."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = ConvNorm(3, STEM, 3, stride=2, rngs=rngs)
        blocks, inward = [], STEM
        for count, kernel, stride, expansion, out in STAGES:
            for i in range(count):
                first = stride if i == 0 else 1
                blocks.append(
                    Block(inward, out, kernel, stride=first, expansion=expansion, rngs=rngs)
                )
                inward = out
        self.blocks = nnx.List(blocks)
        self.head = ConvNorm(inward, HEAD, 1, rngs=rngs)
        self.classes = nnx.Linear(HEAD, CLASSES, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        """Score images.

        Args:
          image: uint8[_, 224, 224, 3], red, green and blue from 0 to 255.

        Returns:
          Logits, float32[_, 1000], in the order of ImageNet's classes.
        """
        x = (image.astype(jnp.float32) - 127.0) / 128.0
        x = nnx.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.relu6(self.head(x)).mean(axis=(1, 2))
        return self.classes(x)


def pretrained() -> EfficientNetLite0:
    """Make the model with the published weights.

    Raises:
      FileNotFoundError: the package that has them is not installed.
      ValueError: the file has other arrays than the model, or of other shapes.
    """
    with published().open("rb") as file:
        arrays = convert(read(file))
    # Shapes alone: to draw 4.7 million weights that are replaced at once takes half a minute.
    model = nnx.eval_shape(lambda: EfficientNetLite0(nnx.Rngs(0)))
    state = nnx.state(model)
    for path, variable in nnx.to_flat_state(state):
        name = "/".join(map(str, path))
        expected, array = variable.get_value(), arrays.pop(name)
        if array.shape != expected.shape:
            raise ValueError(f"{name}: expected {expected.shape}, got {array.shape}")
        variable.set_value(jnp.asarray(array, expected.dtype))
    if arrays:
        raise ValueError(f"expected the arrays of the model alone, got {min(arrays)} too")
    nnx.update(model, state)
    return model


def spec() -> ExportSpec:
    """Return what is exported: one image at a time or four."""
    return ExportSpec(
        model=pretrained(),
        inputs=[
            TensorSpec(
                name="image", dtype="uint8", shape=("_", SIZE, SIZE, 3), minimum=0, maximum=255
            )
        ],
        output="classification:logits",
        buckets=(1, 4),
        name="efficientnet",
    )
