"""What the tests of SavedModels share: a model, and TensorFlow's steps without a start each."""

import numpy as np

from export import for_tensorflow
from tests import in_tensorflow

X = "x:float32[_,3]"
W = {"w": np.float32([[1, 2], [3, 4], [5, 6]])}


def affine(params, x):
    """A stand-in for any model."""
    return x @ params["w"]


def in_one_process(tensorflow):
    """Return what takes a step as `_tensorflow` does, without starting TensorFlow anew."""

    def run(*arguments):
        return for_tensorflow._answer(tensorflow(in_tensorflow.step, *map(str, arguments)))

    return run
