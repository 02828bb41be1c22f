"""Answers to Vertex AI's `predictions`: as they are, as probabilities, or as labels.

To add a format, name it in `runtime.manifest.OUTPUT_KINDS` and write it in `formatted`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.manifest import OutputFormat
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array


def predictions_from(
    outputs: Mapping[str, Array],
    signature: Signature,
    output_format: OutputFormat,
    sizes: Sequence[Mapping[str, int]] = (),
) -> Any:
    """Write answers as `predictions`, one for each instance.

    Args:
      outputs: of the model, by name.
      signature: of the bundle.
      output_format: how they are written.
      sizes: real sizes of bucketed axes for each row, where rows differ.

    Returns:
      What orjson can write: arrays, or lists of arrays and objects.
    """
    columns: dict[str, Any] = {}
    for spec in signature.outputs:
        array = _writable(outputs[spec.name])
        columns[spec.name] = _cropped(spec, array, sizes) if sizes else array
    if output_format.kind != "raw" and output_format.output is not None:
        columns[output_format.output] = formatted(outputs[output_format.output], output_format)
    if len(columns) == 1:
        return next(iter(columns.values()))
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _cropped(spec: TensorSpec, array: Array, sizes: Sequence[Mapping[str, int]]) -> Any:
    if not any(isinstance(dim, str) for dim in spec.shape[1:]):
        return array
    crops: list[Any] = [
        (i, *(slice(size) for size in spec.concrete(1, real)[1:])) for i, real in enumerate(sizes)
    ]
    return [array[crop] for crop in crops]


def _writable(array: Array) -> Array:
    """Give an array of a dtype that orjson writes: float8 and bfloat16 become float32."""
    if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return array.astype(np.float32)
    return np.ascontiguousarray(array)


def formatted(scores: Array, output_format: OutputFormat) -> Any:
    """Format one output: probabilities, or label, confidence and probabilities.

    Args:
      scores: float[n, classes], logits or probabilities as the format says.
      output_format: softmax or classification.

    Returns:
      float32[n, classes], or a list of n objects.
    """
    probabilities = scores.astype(np.float32)
    if output_format.kind == "softmax" or output_format.scores == "logits":
        probabilities = softmax(probabilities)
    if output_format.kind == "softmax":
        return probabilities
    best = probabilities.argmax(axis=-1)
    labels = output_format.labels or tuple(str(i) for i in range(scores.shape[-1]))
    return [
        {
            "label": labels[index],
            "confidence": row[index],
            "probabilities": dict(zip(labels, row, strict=True)) if output_format.labels else row,
        }
        for index, row in zip(best.tolist(), probabilities, strict=True)
    ]


def softmax(logits: Array) -> Array:
    """Compute row-wise softmax of float32[n, classes]."""
    shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
    exponents = np.exp(shifted)
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))
