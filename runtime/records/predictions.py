"""Answers to Vertex AI's `predictions`: as they are, as probabilities, or as labels.

To add a format, name it in `runtime.entries.OUTPUT_KINDS` and write it in `formatted`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from runtime.entries import OutputFormat
from runtime.errors import NonFiniteOutput
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype

# What JSON, which has no NaN and no infinity, is given for them.
Nonfinite = Literal["null", "error", "string"]
_NARROW = tuple(map(numpy_dtype, ("bfloat16", "float8_e4m3fn", "float8_e5m2")))
_SMALL = 1000


def predictions_from(
    outputs: Mapping[str, Array],
    signature: Signature,
    output_format: OutputFormat,
    nonfinite: Nonfinite | None = None,
    *,
    top_k: int | None = None,
) -> Any:
    """Write answers as `predictions`, one for each instance.

    Args:
      outputs: of the model, by name.
      signature: of the bundle.
      output_format: how they are written.
      nonfinite: what to write for what `writable` finds undeclared; None if there is no such.
      top_k: of a classification, how many probabilities are written: the largest, from the first
        on; None for all.

    Returns:
      What orjson can write: arrays, or lists of arrays and objects.

    Raises:
      NonFiniteOutput: there is such, and the policy is not to write it.
    """
    columns: dict[str, Any] = {}
    for spec in signature.outputs:
        array = outputs[spec.name]
        if spec.name == output_format.output and output_format.kind != "raw":
            columns[spec.name] = formatted(array, spec, output_format, nonfinite, top_k)
        else:
            columns[spec.name] = writable(array, spec, nonfinite)
    if len(columns) == 1:
        return next(iter(columns.values()))
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def is_as_declared(spec: TensorSpec, output: Array) -> bool:
    """Whether an output is finite, or has infinities where the bundle declares them; never NaN."""
    if output.dtype.kind in "biu":
        return True
    if spec.nonfinite:
        return not np.isnan(output).any()
    return bool(np.isfinite(output).all())


def as_values(written: Any) -> Any:
    """Return predictions as Python's own values: those that a client reads from the server's JSON.

    Args:
      written: what `predictions_from` returns.

    Returns:
      Lists, dicts, strings, numbers and None, which stands for NaN and for infinity.
    """
    if isinstance(written, dict):
        return {name: as_values(value) for name, value in written.items()}
    if isinstance(written, list):
        return [as_values(value) for value in written]
    if isinstance(written, np.ndarray | np.generic):
        if written.dtype == object or written.dtype.kind in "biu":
            return written.tolist()
        if written.dtype == np.float16:
            written = written.astype(np.float32)
        # By way of text: JSON has the digits of a float32, and not those of the double it equals.
        doubles = np.asarray(written).astype(str).astype(np.float64)
        values = doubles.astype(object)
        values[~np.isfinite(doubles)] = None
        return values.tolist()
    return written


def writable(array: Array, spec: TensorSpec, nonfinite: Nonfinite | None) -> Array:
    """Return an array that orjson writes: of a dtype it knows, and contiguous.

    An infinity that the bundle declares is spelt out, whatever the policy for others: null
    would take away what the model says.

    Args:
      array: of any dtype of the format; float8 and bfloat16 become float32.
      spec: of the output.
      nonfinite: what to write for NaN, and for infinity where the bundle declares none; None
        if there is neither.

    Returns:
      The array, or one of objects in which what JSON lacks is spelt out. orjson itself writes
      it as null.

    Raises:
      NonFiniteOutput: the policy is to fail.
    """
    if array.dtype in _NARROW:
        array = array.astype(np.float32)
    if nonfinite is None and not spec.nonfinite:
        return np.ascontiguousarray(array)
    if array.dtype.kind in "biu" or (finite := np.isfinite(array)).all():
        return np.ascontiguousarray(array)
    undeclared = np.isnan(array) if spec.nonfinite else ~finite
    if nonfinite == "error" and undeclared.any():
        raise NonFiniteOutput("the answer holds NaN or infinity, which JSON has no way to write")
    if nonfinite == "null" and not spec.nonfinite:
        return np.ascontiguousarray(array)
    # By way of text, since a float32 has a shorter one than the double of the same value.
    spelt = array.astype(str).astype(np.float64).astype(object)
    spelt[np.isnan(array)] = "NaN" if nonfinite == "string" else None
    spelt[np.isposinf(array)] = "Infinity"
    spelt[np.isneginf(array)] = "-Infinity"
    return spelt


def formatted(
    scores: Array,
    spec: TensorSpec,
    output_format: OutputFormat,
    nonfinite: Nonfinite | None = None,
    top_k: int | None = None,
) -> Any:
    """Format one output: probabilities, or label, confidence and probabilities.

    Args:
      scores: float[n, classes], logits or probabilities as the format says.
      spec: of the output. Where it declares infinities, a class whose logit is -inf has the
        probability 0; a row of nothing else has no label.
      output_format: softmax, classification or embedding.
      nonfinite: as for `writable`.
      top_k: as for `predictions_from`.

    Returns:
      float32[n, classes], or a list of n objects.
    """
    if output_format.kind == "embedding":
        return writable(vectors(scores, normalized=output_format.normalized), spec, nonfinite)
    if output_format.kind == "softmax" or output_format.scores == "logits":
        probabilities = limit_softmax(scores) if spec.nonfinite else softmax(_single(scores))
    else:
        probabilities = _single(scores)
    written = writable(probabilities, spec, nonfinite)
    if output_format.kind == "softmax":
        return written
    labels = output_format.labels or tuple(map(str, range(scores.shape[-1])))
    named = bool(output_format.labels)
    order = None if top_k is None else largest(probabilities, top_k)
    # Where every class is ruled out none is the best.
    possible = probabilities.any(axis=-1).tolist() if spec.nonfinite else [True] * len(scores)
    return [
        {
            "label": labels[index] if some else None,
            "confidence": row[index],
            "probabilities": _probabilities(
                labels, row, named, None if order is None else order[i]
            ),
        }
        for i, (index, row, some) in enumerate(
            zip(best(probabilities, nonfinite), written, possible, strict=True)
        )
    ]


def _probabilities(labels: Sequence[str], row: Array, named: bool, order: Any) -> Any:
    """Return a row's probabilities by label, or those of some classes in their order."""
    if order is not None:
        return {labels[index]: row[index] for index in order}
    return dict(zip(labels, row, strict=True)) if named else row


def largest(scores: Array, count: int) -> Array:
    """Return the indices of each row's largest scores, from the first on; of equal ones the first."""
    return np.argsort(-scores, axis=-1, kind="stable")[:, :count]


def vectors(rows: Array, *, normalized: bool) -> Array:
    """Return the rows of an embedding as float32[n, size], each of length one if asked for.

    A row of zeros has no direction, and stays.
    """
    found = _single(rows)
    if not normalized:
        return found
    lengths = np.linalg.norm(found, axis=-1, keepdims=True)
    return np.asarray(found / np.where(lengths == 0, 1, lengths), np.float32)


def best(scores: Array, nonfinite: Nonfinite | None) -> list[int]:
    """Return the index of each row's largest score.

    NumPy's argmax lets other threads run, which takes longer to return from than a
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


def limit_softmax(logits: Array) -> Array:
    """Compute row-wise softmax of logits that can be infinite, as the limit that it tends to.

    Args:
      logits: float[n, classes].

    Returns:
      float32[n, classes]: 0 for -inf; where there are inf these share the row equally; a row
      of -inf alone is all 0, since no class is possible; one with NaN is NaN.
    """
    wide = logits if logits.dtype == np.float64 else logits.astype(np.float32)
    top = wide.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        exponents = np.where(np.isinf(top), wide == top, np.exp(wide - top))
        exponents[np.isneginf(wide)] = 0
        total = exponents.sum(axis=-1, keepdims=True)
        return np.asarray(exponents / np.where(total == 0, 1, total), np.float32)


def _single(scores: Array) -> Array:
    return scores.astype(np.float32)
