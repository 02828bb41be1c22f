"""What an export takes, and its proof within it: seconds by stage.

    python -m bench.proof [NAME …]

`efficientnet` is a network of the size of EfficientNet-B0 at 224 x 224, in linen with BatchNorm;
`lstm` reads 128 tokens in a Python loop, so that its programs are 128 steps long. Both have seeded
weights and buckets of 1, 8 and 32 rows. CPU seconds are of this process and those it starts.
"""

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from bench.machine import heading
from export import ExportSpec, TensorSpec, export_model

BUCKETS = (1, 8, 32)

# Of each stage: expansion, channels, blocks, stride of the first, kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def norm():
    return nn.BatchNorm(use_running_average=True, epsilon=1e-3)


class Block(nn.Module):
    """A depthwise convolution between pointwise ones, with squeeze and excitation."""

    expansion: int
    channels: int
    stride: int
    kernel: int

    @nn.compact
    def __call__(self, x):
        given, wide = x.shape[-1], x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.swish(norm()(nn.Conv(wide, (1, 1), use_bias=False)(y)))
        depthwise = nn.Conv(
            wide,
            (self.kernel, self.kernel),
            strides=self.stride,
            feature_group_count=wide,
            use_bias=False,
        )
        y = nn.swish(norm()(depthwise(y)))
        s = nn.swish(nn.Conv(max(1, given // 4), (1, 1))(y.mean((1, 2), keepdims=True)))
        y = y * nn.sigmoid(nn.Conv(wide, (1, 1))(s))
        y = norm()(nn.Conv(self.channels, (1, 1), use_bias=False)(y))
        return x + y if self.stride == 1 and given == self.channels else y


class EfficientNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.swish(norm()(nn.Conv(32, (3, 3), strides=2, use_bias=False)(x)))
        for expansion, channels, blocks, stride, kernel in STAGES:
            for i in range(blocks):
                x = Block(expansion, channels, 1 if i else stride, kernel)(x)
        x = nn.swish(norm()(nn.Conv(1280, (1, 1), use_bias=False)(x)))
        return nn.Dense(1000)(x.mean((1, 2)))


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(5000, 128)(ids)
        cell = nn.OptimizedLSTMCell(128)
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
        for step in range(ids.shape[1]):
            carry, y = cell(carry, x[:, step])
        return nn.Dense(4)(y)


def seeded(model, example):
    """Draw weights that keep activations of about one size through the layers."""
    rng = np.random.default_rng(0)

    def draw(path, shape):
        if jax.tree_util.keystr(path).endswith(("['var']", "['scale']")):
            return rng.uniform(0.8, 1.2, shape.shape).astype(np.float32)
        scale = np.prod(shape.shape[:-1]) ** -0.5 if len(shape.shape) > 1 else 0.05
        return (scale * rng.standard_normal(shape.shape)).astype(np.float32)

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), example))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def efficientnet():
    image = TensorSpec(name="image", dtype="float32", shape=("_", 224, 224, 3))
    return spec("efficientnet", EfficientNet(), np.zeros((1, 224, 224, 3), np.float32), image)


def lstm():
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", 128), minimum=0, maximum=4999)
    return spec("lstm", Unrolled(), np.zeros((1, 128), np.int32), ids)


def spec(name, model, example, taken):
    params = seeded(model, example)
    return ExportSpec(
        model=model, params=params, inputs=(taken,), buckets=BUCKETS, platforms=("cpu",), name=name
    )


MODELS = {"efficientnet": efficientnet, "lstm": lstm}


def measure(name):
    """Export one model and print what each step took, and all of them."""
    exported = MODELS[name]()
    steps = []

    def step(sentence):
        steps.append((time.perf_counter(), sentence))

    with tempfile.TemporaryDirectory() as folder:
        cpu = sum(os.times()[:4])
        step("checking what is asked for")
        export_model(exported, out=Path(folder) / "bundle", progress=step)
        step("")
        cpu = sum(os.times()[:4]) - cpu
    for (begin, sentence), (end, _) in itertools.pairwise(steps):
        print(f"{end - begin:7.1f}  {sentence}")
    print(f"{name}: {steps[-1][0] - steps[0][0]:.1f} s, {cpu:.1f} s of CPU", flush=True)


if __name__ == "__main__":
    print(heading())
    for name in sys.argv[1:] or MODELS:
        measure(name)
    print(f"load {os.getloadavg()[0]:.1f}")
