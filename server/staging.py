"""Tasks to a program's arrays, and its outputs back to each task. Pure functions."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.buckets import pad
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype
from server.batching import Batch, Task


def stage(signature: Signature, batch: Batch) -> tuple[Array, ...]:
    """Lay the rows of all tasks out as a program takes them.

    A task's payload begins with its arrays in the signature's order, None for a mask that
    was left out. Bucketed axes are filled with the input's pad value, the batch with a real row.

    Returns:
      Arrays of exactly the program's shapes; a lone task's own where they fit as they are.
    """
    names = [axis.name for axis in signature.axes]
    sizes = dict(zip(names, batch.sizes, strict=True))
    return tuple(
        _input(
            spec, [(task.payload[0][i], _real(names, task)) for task in batch.tasks], batch, sizes
        )
        for i, spec in enumerate(signature.inputs)
    )


def _input(
    spec: TensorSpec,
    parts: Sequence[tuple[Array | None, Mapping[str, int]]],
    batch: Batch,
    sizes: Mapping[str, int],
) -> Array:
    bucketed = any(dim in sizes for dim in spec.shape)
    if not bucketed:
        arrays = [array for array, _ in parts if array is not None]
        return pad(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), batch.bucket)
    shape = spec.concrete(batch.bucket, sizes)
    first = parts[0][0]
    if first is not None and first.shape == shape:
        return first
    out = np.full(shape, spec.pad, numpy_dtype(spec.dtype))
    start = 0
    for task, (array, real) in zip(batch.tasks, parts, strict=True):
        end = start + task.rows
        region = out[(slice(start, end), *_slices(spec, real))]
        region[...] = 1 if array is None else array
        start = end
    out[start:] = out[start - 1]
    return out


def unstage(
    signature: Signature, batch: Batch, outputs: Sequence[Array]
) -> list[tuple[Array, ...]]:
    """Give each task its own rows, cut to its own sizes of bucketed axes."""
    names = [axis.name for axis in signature.axes]
    answers = []
    start = 0
    for task in batch.tasks:
        rows = slice(start, start + task.rows)
        start += task.rows
        real = _real(names, task)
        answers.append(
            tuple(
                output[(rows, *_slices(spec, real))] if real else output[rows]
                for spec, output in zip(signature.outputs, outputs, strict=True)
            )
        )
    return answers


def count_elements(signature: Signature, batch: Batch) -> tuple[int, int]:
    """Count the input elements of a batch's program, masks apart.

    Returns:
      All of them, and those among them that are padding.
    """
    names = [axis.name for axis in signature.axes]
    sizes = dict(zip(names, batch.sizes, strict=True))
    run = real = 0
    for spec in signature.inputs:
        if spec.mask:
            continue
        row = math.prod(spec.concrete(1, sizes))
        run += batch.bucket * row
        if any(dim in sizes for dim in spec.shape):
            real += sum(
                math.prod(spec.concrete(task.rows, _real(names, task))) for task in batch.tasks
            )
        else:
            real += batch.rows * row
    return run, run - real


def _real(names: Sequence[str], task: Task) -> dict[str, int]:
    return dict(zip(names, task.sizes, strict=True))


def _slices(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[slice, ...]:
    return tuple(
        slice(sizes[dim]) if isinstance(dim, str) else slice(None) for dim in spec.shape[1:]
    )
