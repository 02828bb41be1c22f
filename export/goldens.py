"""Goldens: inputs, and the answers of the un-exported model run op by op.

The reference must not be made by what is being tested. XLA's CPU compiler has returned
NaN for whole bfloat16 programs whose operations are right one by one, so the model
runs under `jax.disable_jit`, each operation on its own, on the CPU.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from export.errors import ExportError, first_line
from export.lowering import describe
from runtime.errors import SignatureMismatch
from runtime.inputs import Checker
from runtime.manifest import Tolerance
from runtime.rows import draw
from runtime.signature import Axis, Signature, TensorSpec
from runtime.tensors import Array, numpy_dtype, read_tensors

# Bytes that one golden's seeded inputs may take; the rows are at least 4.
GOLDEN_BYTES = 256 * 1024
# Every program answers every row, and every row is stored. Larger buckets repeat them;
# that a row's place in a batch does not matter is probed apart.
MOST_ROWS = 16

# Relative to the output's largest value, and to each value. Float32 on a GPU may be
# multiplied in TF32, which keeps 10 bits of mantissa, unless the precision is pinned.
_CPU = {
    "float64": Tolerance(atol=1e-11, rtol=1e-9),
    "float32": Tolerance(atol=2e-5, rtol=1e-4),
    "float16": Tolerance(atol=5e-3, rtol=5e-3),
    "bfloat16": Tolerance(atol=3e-2, rtol=3e-2),
    "float8_e4m3fn": Tolerance(atol=0.25, rtol=0.25),
    "float8_e5m2": Tolerance(atol=0.5, rtol=0.5),
}
_TF32 = Tolerance(atol=5e-3, rtol=5e-3)
_EXACT = Tolerance(atol=0.0, rtol=0.0)
_PINNED = ("highest", "float32")


def seeded_inputs(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, int], rows: int, seed: int
) -> dict[str, Array]:
    """Draw legal inputs; the same ones for the same seed. Masks are all ones."""
    rng = np.random.default_rng([seed, rows, *sizes.values()])
    out = {}
    for spec in inputs:
        shape = spec.concrete(rows, sizes)
        out[spec.name] = (
            np.ones(shape, numpy_dtype(spec.dtype)) if spec.mask else draw(spec, shape, rng)
        )
    return out


def golden_rows(inputs: Sequence[TensorSpec], sizes: Mapping[str, int], most: int) -> int:
    """Say how many rows a seeded golden gets: enough to fill a bucket, within a size."""
    row = sum(spec.row_bytes(sizes) for spec in inputs)
    return min(most, MOST_ROWS, max(4, GOLDEN_BYTES // max(1, row)))


def read_inputs(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read golden inputs from a .safetensors or .npz file, by name.

    Raises:
      ExportError: it cannot be read.
    """
    source = Path(path)
    try:
        if source.suffix == ".npz":
            with source.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return dict(file)
        return {
            n.removeprefix("input/"): a
            for n, a in read_tensors(source, source.read_bytes()).items()
            if not n.startswith("output/")
        }
    except Exception as error:  # NumPy raises a zoo of them for a damaged .npz
        raise ExportError(
            f"golden {source}: expected .safetensors or .npz of inputs by name, got "
            f"{first_line(error)}"
        ) from error


def check_inputs(
    inputs: Sequence[TensorSpec], axes: Sequence[Axis], given: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, int]]:
    """Hold given golden inputs against the declared ones; masks may be left out.

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


def reference(
    function: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]],
    params: Sequence[Array],
    inputs: Sequence[Array],
) -> tuple[Array, ...]:
    """Run a function op by op on the CPU.

    Args:
      function: (params, inputs) to outputs, flat.
      params: host arrays.
      inputs: host arrays.

    Raises:
      ExportError: it fails.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    try:
        with jax.default_device(cpu), jax.disable_jit():
            placed = [jax.device_put(array, cpu) for array in (*params, *inputs)]
            outputs = function(placed[: len(params)], placed[len(params) :])
            return tuple(np.asarray(output) for output in outputs)
    except ExportError:
        raise
    except (Exception, SystemExit) as error:
        raise ExportError(f"the model cannot be run op by op: {describe(error)}") from error


def refuse_non_finite(
    names: Sequence[str], outputs: Sequence[Array], inputs: Sequence[TensorSpec]
) -> None:
    """Raise ExportError for an expected answer that is NaN or infinite."""
    for name, output in zip(names, outputs, strict=True):
        if not jax.numpy.issubdtype(output.dtype, jax.numpy.floating):
            continue
        bad = ~np.isfinite(output.astype(np.float64))
        if bad.any():
            loose = [
                s.name
                for s in inputs
                if "int" in s.dtype and s.minimum is None and s.maximum is None and not s.mask
            ]
            hint = (
                f"; is a value of {loose[0]!r} out of range? pass --range {loose[0]}=0:N"
                if loose
                else "; pass representative inputs with --golden FILE"
            )
            raise ExportError(
                f"golden: output {name!r}: expected finite values, got {int(bad.sum())} of {bad.size} "
                f"that are not (the un-exported model, op by op){hint}"
            )


def tolerance(
    platform: str,
    dtypes: set[str],
    output: TensorSpec,
    expected: Sequence[Array],
    precision: str | None,
) -> Tolerance:
    """Decide how far an output may be off on a platform.

    The coarsest floating dtype that the computation passes through decides; the
    absolute part is relative to the output's largest expected value.

    Args:
      platform: cpu, cuda, …
      dtypes: floating dtypes of the computation.
      output: the output; integers and booleans must be equal.
      expected: its expected values, in every golden.
      precision: what dots were lowered with.
    """
    if "float" not in output.dtype:
        return _EXACT
    base = max((_CPU[d] for d in {*dtypes, output.dtype} if d in _CPU), key=lambda t: t.atol)
    if platform != "cpu" and base.atol < _TF32.atol and output.dtype != "float64":
        base = Tolerance(atol=base.atol * 4, rtol=base.rtol * 4) if precision in _PINNED else _TF32
    scale = _scale(expected)
    return Tolerance(atol=_rounded(base.atol * (scale or 1.0)), rtol=base.rtol)


def _scale(expected: Sequence[Array]) -> float:
    """Give the size of an output's ordinary values, whatever sentinels stand among them.

    A model that fills masked places with -1e9 must not loosen the tolerance of the others:
    the largest value counts as far as 100 times the lower quartile of those that are not 0.
    """
    values = np.concatenate([np.abs(np.float64(e)).reshape(-1) for e in expected])
    values = values[values > 0]
    return float(min(values.max(), 100 * np.quantile(values, 0.25))) if values.size else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
