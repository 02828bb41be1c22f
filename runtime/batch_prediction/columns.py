"""Answers as columns, for files that have columns: labels, probabilities and vectors as the bundle says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.entries import OutputFormat
from runtime.records.predictions import limit_softmax, softmax, vectors
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array


def prediction_columns(
    outputs: Sequence[Array], signature: Signature, form: OutputFormat
) -> dict[str, Array]:
    """Return predictions as columns, row for row.

    Args:
      outputs: in the signature's order, each [n, ...].
      signature: of the bundle.
      form: how the one that it names is formatted.

    Returns:
      An output's name to its rows. Of a classification `label`, `confidence` and `probabilities`,
      behind the output's name and a dot where there are several outputs.
    """
    columns: dict[str, Array] = {}
    for spec, array in zip(signature.outputs, outputs, strict=True):
        if spec.name != form.output or form.kind == "raw":
            columns[spec.name] = array
        elif form.kind == "embedding":
            columns[spec.name] = vectors(array, normalized=form.normalized)
        elif form.kind == "softmax":
            columns[spec.name] = _probabilities(array, spec)
        else:
            scores = (
                _probabilities(array, spec) if form.scores == "logits" else array.astype(np.float32)
            )
            prefix = f"{spec.name}." if len(signature.outputs) > 1 else ""
            columns |= {
                f"{prefix}{n}": c for n, c in _classified(scores, spec, form.labels).items()
            }
    return columns


def _probabilities(array: Array, spec: TensorSpec) -> Array:
    return limit_softmax(array) if spec.nonfinite else softmax(array.astype(np.float32))


def _classified(scores: Array, spec: TensorSpec, labels: Sequence[str]) -> Mapping[str, Array]:
    names: Any = np.array(labels or tuple(map(str, range(scores.shape[-1]))))
    index = scores.argmax(axis=-1)
    label = names[index]
    if spec.nonfinite:  # where every class is ruled out none is the best
        label = np.where(scores.any(axis=-1), label, "")
    confidence = np.take_along_axis(scores, index[:, None], axis=-1)[:, 0]
    return {"label": label, "confidence": confidence, "probabilities": scores}
