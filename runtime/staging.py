"""Rows to a program's arrays, and its outputs back to each row's owner. Pure functions.

The same code for requests, `Model.predict`, goldens and probes: what is proven is what serves.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.inputs import Checked
from runtime.signature import Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype

Sizes = tuple[int, ...]


def stage(
    signature: Signature, parts: Sequence[Checked], batch: int, sizes: Sizes
) -> tuple[Array, ...]:
    """Lay rows out as a program takes them.

    Bucketed axes are padded with the input's pad value behind the real elements, the batch by
    repeating the last real row, since zeros can make NaN where real rows do not. A mask that was
    left out is 1 on the real elements.

    Args:
      signature: of the bundle.
      parts: checked inputs, one after the other in the batch; at least one row and at most `batch`
        rows in all.
      batch: the program's batch size.
      sizes: the program's size of each bucketed axis, in the signature's order.

    Returns:
      Arrays of exactly the program's shapes, in the signature's order; a lone part's own where
      they fit as they are.
    """
    names = [axis.name for axis in signature.axes]
    to = dict(zip(names, sizes, strict=True))
    real = [dict(zip(names, part.sizes, strict=True)) for part in parts]
    return tuple(
        _stage_input(spec, [part.arrays[i] for part in parts], parts, batch, to, real)
        for i, spec in enumerate(signature.inputs)
    )


def _stage_input(
    spec: TensorSpec,
    arrays: Sequence[Array | None],
    parts: Sequence[Checked],
    batch: int,
    sizes: Mapping[str, int],
    real: Sequence[Mapping[str, int]],
) -> Array:
    first = arrays[0]
    if not any(dim in sizes for dim in spec.shape):  # no mask, so that each part has its array
        whole = first if len(arrays) == 1 else np.concatenate(arrays)  # type: ignore[arg-type]
        return pad(whole, batch)  # type: ignore[arg-type]
    shape = spec.concrete(batch, sizes)
    if first is not None and first.shape == shape:
        return first
    out = np.full(shape, spec.pad, numpy_dtype(spec.dtype))
    start = 0
    for part, array, own in zip(parts, arrays, real, strict=True):
        end = start + part.rows
        region = out[(slice(start, end), *_slices(spec, own))]
        region[...] = 1 if array is None else array
        start = end
    out[start:] = out[start - 1]
    return out


def unstage(
    signature: Signature, parts: Sequence[Checked], outputs: Sequence[Array]
) -> list[tuple[Array, ...]]:
    """Return each part's own rows, cut to its own sizes of bucketed axes.

    Args:
      signature: of the bundle.
      parts: as they were staged.
      outputs: of the program, in the signature's order.

    Returns:
      For each part views of its rows of the outputs.
    """
    names = [axis.name for axis in signature.axes]
    answers = []
    start = 0
    for part in parts:
        rows = slice(start, start + part.rows)
        start += part.rows
        real = dict(zip(names, part.sizes, strict=True))
        answers.append(
            tuple(
                output[(rows, *_slices(spec, real))] if real else output[rows]
                for spec, output in zip(signature.outputs, outputs, strict=True)
            )
        )
    return answers


def count_elements(
    signature: Signature, parts: Sequence[Checked], batch: int, sizes: Sizes
) -> tuple[int, int]:
    """Count the input elements of a program's run, masks apart.

    Returns:
      All of them, and those among them that are padding.
    """
    names = [axis.name for axis in signature.axes]
    to = dict(zip(names, sizes, strict=True))
    run = real = 0
    for spec in signature.inputs:
        if spec.mask:
            continue
        row = math.prod(spec.concrete(1, to))
        run += batch * row
        if any(dim in to for dim in spec.shape):
            own = (spec.concrete(p.rows, dict(zip(names, p.sizes, strict=True))) for p in parts)
            real += sum(map(math.prod, own))
        else:
            real += sum([part.rows for part in parts]) * row
    return run, run - real


def pad(rows: Array, batch: int) -> Array:
    """Repeat the last row until the leading dimension is `batch`.

    Args:
      rows: dtype[n, ...] with 1 <= n <= batch.
      batch: the batch size of the program that will run.

    Returns:
      dtype[batch, ...]; the first n rows are `rows`, the same object if n == batch.
    """
    missing = batch - len(rows)
    if missing == 0:
        return rows
    out = np.empty((batch, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    out[len(rows) :] = rows[-1]
    return out


def _slices(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[slice, ...]:
    return tuple(
        slice(sizes[dim]) if isinstance(dim, str) else slice(None) for dim in spec.shape[1:]
    )
