"""Answers to Vertex AI's `predictions`: as they are, as probabilities, or as labels.

To add a format, name it in `runtime.entries.OUTPUT_KINDS` and write it in `formatted`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.entries import OutputFormat
from runtime.signature import Signature
from runtime.tensors import Array, numpy_dtype
from server.errors import NonFiniteOutput
from server.pending import Nonfinite

_NARROW = tuple(map(numpy_dtype, ("bfloat16", "float8_e4m3fn", "float8_e5m2")))
_SMALL = 1000


def predictions_from(
    outputs: Mapping[str, Array],
    signature: Signature,
    output_format: OutputFormat,
    nonfinite: Nonfinite | None = None,
) -> Any:
    """Write answers as `predictions`, one for each instance.

    Args:
      outputs: of the model, by name.
      signature: of the bundle.
      output_format: how they are written.
      nonfinite: what to write for NaN and infinity; None if there is neither.

    Returns:
      What orjson can write: arrays, or lists of arrays and objects.

    Raises:
      NonFiniteOutput: there is NaN or infinity, and the policy is not to write it.
    """
    columns: dict[str, Any] = {}
    for spec in signature.outputs:
        array = outputs[spec.name]
        if spec.name == output_format.output and output_format.kind != "raw":
            columns[spec.name] = formatted(array, output_format, nonfinite)
        else:
            columns[spec.name] = writable(array, nonfinite)
    if len(columns) == 1:
        return next(iter(columns.values()))
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def writable(array: Array, nonfinite: Nonfinite | None) -> Array:
    """Give an array that orjson writes: of a dtype it knows, and contiguous.

    Args:
      array: of any dtype of the format; float8 and bfloat16 become float32.
      nonfinite: what to write for NaN and infinity; None if there is neither.

    Returns:
      The array, or one of objects in which NaN and infinity are spelt out. orjson itself
      writes them as null.

    Raises:
      NonFiniteOutput: the policy is to fail.
    """
    if array.dtype in _NARROW:
        array = array.astype(np.float32)
    if nonfinite is None or nonfinite == "null" or np.isfinite(array).all():
        return np.ascontiguousarray(array)
    if nonfinite == "error":
        raise NonFiniteOutput("the answer holds NaN or infinity, which JSON has no way to write")
    # By way of text, since a float32 has a shorter one than the double of the same value.
    spelt = array.astype(str).astype(np.float64).astype(object)
    spelt[np.isnan(array)] = "NaN"
    spelt[np.isposinf(array)] = "Infinity"
    spelt[np.isneginf(array)] = "-Infinity"
    return spelt


def formatted(
    scores: Array, output_format: OutputFormat, nonfinite: Nonfinite | None = None
) -> Any:
    """Format one output: probabilities, or label, confidence and probabilities.

    Args:
      scores: float[n, classes], logits or probabilities as the format says.
      output_format: softmax or classification.
      nonfinite: what to write for NaN and infinity; None if there is neither.

    Returns:
      float32[n, classes], or a list of n objects.
    """
    probabilities = scores.astype(np.float32)
    if output_format.kind == "softmax" or output_format.scores == "logits":
        probabilities = softmax(probabilities)
    written = writable(probabilities, nonfinite)
    if output_format.kind == "softmax":
        return written
    labels = output_format.labels or tuple(map(str, range(scores.shape[-1])))
    named = bool(output_format.labels)
    return [
        {
            "label": labels[index],
            "confidence": row[index],
            "probabilities": dict(zip(labels, row, strict=True)) if named else row,
        }
        for index, row in zip(best(probabilities, nonfinite), written, strict=True)
    ]


def best(scores: Array, nonfinite: Nonfinite | None) -> list[int]:
    """Give the index of each row's largest score.

    NumPy's argmax lets other threads run, which takes longer to come back from than a
    few comparisons take in Python; NaN, which is largest to it, needs it all the same.
    """
    if nonfinite is None and scores.size < _SMALL:
        return [row.index(max(row)) for row in scores.tolist()]
    return list(map(int, scores.argmax(axis=-1)))


def softmax(logits: Array) -> Array:
    """Compute row-wise softmax of float32[n, classes]."""
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, for that row alone
        shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
        exponents = np.exp(shifted)
        return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))
