"""Inputs for goldens: the user's own, and seeded ones at and between the sizes of each axis."""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from export.errors import ExportError, first_line
from export.spec import ExportSpec
from runtime.errors import SignatureMismatch, nearest
from runtime.inputs import Checker
from runtime.localpaths import why_not_read
from runtime.rows import draw
from runtime.signature import Axis, Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype, read_tensors

# Bytes that one golden's seeded inputs may take; the rows are at least 4.
GOLDEN_BYTES = 256 * 1024
# Every program answers every row, and every row is stored. Larger buckets repeat them;
# that a row's place in a batch does not matter is probed apart.
MAX_ROWS = 16
# Of JSON lines, where rows begin at texts.
LINES = ".jsonl"
_EXPECTED = "expected .safetensors or .npz of inputs by name"
_ZIP = b"PK\x03\x04"


class GoldenInputs(NamedTuple):
    """The inputs of one golden.

    Attributes:
      inputs: by name.
      sizes: of the bucketed axes.
      raw: the raw rows that they were made of; None for tensors.
    """

    inputs: dict[str, Array]
    sizes: dict[str, int]
    raw: Sequence[Mapping[str, str | bytes]] | None = None


def golden_inputs(
    spec: ExportSpec, signature: Signature, prepared: Sequence[GoldenInputs] = ()
) -> list[GoldenInputs]:
    """Return golden inputs: those given, which were read, and seeded ones.

    Args:
      spec: has those given.
      signature: that they fit.
      prepared: those that were made of raw inputs.

    Raises:
      ExportError: those given do not fit.
    """
    found = list(prepared)
    if isinstance(spec.golden, Mapping):
        given = check_inputs(signature.inputs, signature.axes, spec.golden)
        found.append(GoldenInputs(*given))
    if not found or signature.axes:
        found += [GoldenInputs(*seeded) for seeded in _seeded(spec, signature)]
    if not spec.allow_row_mixing:
        return found
    # What such a model answers depends on how many rows it gets: each bucket has its own.
    return [_with_rows(one, rows) for one in found for rows in spec.buckets]


def _with_rows(golden: GoldenInputs, rows: int) -> GoldenInputs:
    """Return a golden of so many rows, in a cycle."""
    inputs = {
        name: np.take(array, range(rows), axis=0, mode="wrap")
        for name, array in golden.inputs.items()
    }
    raw = golden.raw and [golden.raw[i % len(golden.raw)] for i in range(rows)]
    return GoldenInputs(inputs, golden.sizes, raw)


def _seeded(
    spec: ExportSpec, signature: Signature
) -> list[tuple[dict[str, Array], dict[str, int]]]:
    found = []
    filling = max(4, spec.buckets[-1])
    for between, values in _axis_points(signature.axes):
        named = dict(zip((a.name for a in signature.axes), values, strict=True))
        rows = golden_rows(signature.inputs, named, 4 if between else filling)
        found.append((seeded_inputs(signature.inputs, named, rows, spec.seed), named))
    return found


def _axis_points(axes: Sequence[Axis]) -> list[tuple[bool, tuple[int, ...]]]:
    """Return axis sizes to try: each bucket's, those halfway to the next smaller one, and the smallest."""
    exact = [(False, values) for values in itertools.product(*(axis.sizes for axis in axes))]
    halves = []
    for axis in axes:
        below = (axis.minimum - 1, *axis.sizes[:-1])
        halves.append([(low + high + 1) // 2 for low, high in zip(below, axis.sizes, strict=True)])
    smallest = tuple(axis.minimum for axis in axes)
    points = dict.fromkeys([*itertools.product(*halves), smallest] if axes else [])
    known = {values for _, values in exact}
    return exact + [(True, values) for values in points if values not in known]


def seeded_inputs(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, int], rows: int, seed: int
) -> dict[str, Array]:
    """Draw legal inputs; the same ones for the same seed. Masks are all ones."""
    rng = np.random.default_rng([seed, rows, *sizes.values()])
    out = {}
    for spec in inputs:
        shape = spec.concrete(rows, sizes)
        out[spec.name] = (
            np.ones(shape, numpy_dtype(spec.dtype)) if spec.mask else draw(spec, shape, sizes, rng)
        )
    return out


def golden_rows(inputs: Sequence[TensorSpec], sizes: Mapping[str, int], limit: int) -> int:
    """Return how many rows a seeded golden gets: enough to fill a bucket, within a size."""
    row = sum(spec.row_bytes(sizes) for spec in inputs)
    return min(limit, MAX_ROWS, max(4, GOLDEN_BYTES // max(1, row)))


def expect_golden_file(path: str | os.PathLike[str]) -> None:
    """Refuse at once what is no file of golden inputs by its place or its first bytes.

    Raises:
      ExportError: says what is there.
    """
    source = Path(path)
    if reason := why_not_read(path):
        raise ExportError(f"golden: {reason}")
    try:
        if source.is_dir():
            got = "a directory"
        else:
            with source.open("rb") as f:
                lines = source.suffix == LINES
                got = "" if lines else _other_form(f.read(16))
    except FileNotFoundError:
        beside = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        got = f"nothing there{nearest(source.name, beside)}"
    except OSError as error:
        got = error.strerror or type(error).__name__
    if got:
        raise ExportError(f"golden {source}: {_EXPECTED}, got {got}")


def _other_form(head: bytes) -> str:
    """Return what begins like this and is neither .npz nor safetensors, or nothing."""
    if not head:
        return "an empty file"
    if head.startswith(b"\x93NUMPY"):
        return "one array without a name; write it with np.savez('golden.npz', NAME=array)"
    if head.startswith(_ZIP) or head[8:9] == b"{":
        return ""
    binary = any(byte < 32 and byte not in b"\t\n\r" for byte in head)
    return "a file of another form" if binary else "a text file"


def read_inputs(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read golden inputs from a .safetensors or .npz file, by name.

    Raises:
      ExportError: it cannot be read.
    """
    expect_golden_file(path)
    source = Path(path)
    try:
        with source.open("rb") as opened:
            if opened.read(len(_ZIP)) == _ZIP:
                opened.seek(0)
                with np.load(opened, allow_pickle=False) as file:
                    return dict(file)
        return {
            n.removeprefix("input/"): a
            for n, a in read_tensors(source, source.read_bytes()).items()
            if not n.startswith("output/")
        }
    except Exception as error:  # NumPy raises a zoo of them for a damaged .npz
        raise ExportError(f"golden {source}: {_EXPECTED}, got {first_line(error)}") from error


def with_goldens_read(spec: ExportSpec) -> ExportSpec:
    """Return a spec whose golden inputs are there and fit its inputs, before any work is done on it.

    Raises:
      ExportError: they cannot be read, or do not fit.
    """
    if spec.golden is None:
        return spec
    given = spec.golden if isinstance(spec.golden, Mapping) else read_inputs(spec.golden)
    check_inputs(spec.inputs, tuple(spec.axes.values()), given)  # type: ignore[arg-type]
    return dataclasses.replace(spec, golden=given)


def check_inputs(
    inputs: Sequence[TensorSpec], axes: Sequence[Axis], given: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, int]]:
    """Check given golden inputs against the declared ones; masks may be left out.

    Returns:
      Inputs by name, and the size of each bucketed axis.

    Raises:
      ExportError: they do not fit.
    """
    signature = Signature(inputs=tuple(inputs), outputs=(), axes=tuple(axes))
    try:
        checked = Checker(signature).check(given)
    except SignatureMismatch as error:
        raise ExportError(f"golden: {error}") from None
    if checked.rows == 0:
        raise ExportError("golden: expected at least one row, got none")
    sizes = dict(zip((axis.name for axis in axes), checked.sizes, strict=True))
    arrays = {
        spec.name: np.ones(spec.concrete(checked.rows, sizes), numpy_dtype(spec.dtype))
        if a is None
        else a
        for spec, a in zip(inputs, checked.arrays, strict=True)
    }
    return arrays, sizes
