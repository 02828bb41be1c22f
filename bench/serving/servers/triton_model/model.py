"""The classifier behind Triton's Python backend: Triton batches, and calls `execute` with the batch."""

# ruff: noqa: E402 (its packages are found only then)

import os
import sys

# The stub, which embeds an interpreter, does not look at PYTHONPATH itself.
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

import numpy as np
import triton_python_backend_utils as pb_utils

from bench.serving.servers.classifier import Classifier


class TritonPythonModel:
    """One request is one row, or several."""

    def initialize(self, args: dict) -> None:  # noqa: ARG002 (Triton's signature)
        self._classifier = Classifier()

    def execute(self, requests: list) -> list:
        arrays = [pb_utils.get_input_tensor_by_name(one, "x").as_numpy() for one in requests]
        rows = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        found = self._classifier.probabilities(rows)
        responses, start = [], 0
        for array in arrays:
            part = found[start : start + len(array)]
            start += len(array)
            tensor = pb_utils.Tensor("probabilities", part)
            responses.append(pb_utils.InferenceResponse([tensor]))
        return responses
