"""A fake model that takes images: by the real stage, from a file to pixels, and the mean of each channel."""

import numpy as np

from runtime.image_stage import ImageStage
from runtime.preprocessing.images import ImageReader
from runtime.preprocessing.preparation import Preparer
from runtime.signature import Signature, TensorSpec
from tests.server.fakes import FakeModel

STAGE = ImageStage(
    input="image",
    size=(4, 6),
    resize="exact",
    interpolation="bilinear",
    antialias=True,
    channels="RGB",
    max_pixels=1_000_000,
    max_bytes=1 << 20,
)
IMAGE = TensorSpec(name="image", dtype="uint8", shape=("_", 4, 6, 3))
MEANS = Signature(
    inputs=(IMAGE,), outputs=(TensorSpec(name="mean", dtype="float32", shape=("_", 3)),)
)
WITH_AGE = Signature(
    inputs=(IMAGE, TensorSpec(name="age", dtype="int32", shape=("_",))), outputs=MEANS.outputs
)


def means(image, age=0):
    """Return the mean of each channel, and the age on top."""
    return ((image.mean(axis=(1, 2)) + np.reshape(age, (-1, 1))).astype(np.float32),)


class ImageModel(FakeModel):
    """Takes the mean of each channel of images."""

    def __init__(self, signature=MEANS, stage=STAGE, **options):
        super().__init__(signature=signature, function=means, **options)
        self.manifest.preprocess = (stage,)
        self.preparer = Preparer([ImageReader(stage, signature)], signature, self.checker)
