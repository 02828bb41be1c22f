"""Goldens: the answers of the un-exported model run op by op, and how far they bind.

The reference must not be made by what is being tested. XLA's CPU compiler has returned
NaN for whole bfloat16 programs whose operations are right one by one, so the model
runs under `jax.disable_jit`, each operation on its own, on the CPU.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from export.errors import ExportError, ParamsError
from export.lowering import describe
from runtime.entries import Tolerance
from runtime.signature import TensorSpec
from runtime.tensors import Array

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
    names: Sequence[str],
    outputs: Sequence[Array],
    inputs: Sequence[TensorSpec],
    cause: Callable[[], str],
) -> None:
    """Raise ExportError for an expected answer that is NaN or infinite.

    Args:
      names: of the outputs.
      outputs: the answers.
      inputs: what they are answers to; suspected where the params are not.
      cause: says what is wrong with the params, or nothing; called where an answer is bad.

    Raises:
      ParamsError: there is a cause.
      ExportError: there is none.
    """
    for name, output in zip(names, outputs, strict=True):
        if not jax.numpy.issubdtype(output.dtype, jax.numpy.floating):
            continue
        bad = ~np.isfinite(output.astype(np.float64))
        if bad.any():
            shown = f"{int(bad.sum())} of {bad.size}"
            if found := cause():
                raise ParamsError(
                    f"{found}; so {shown} values of output {name!r} are not finite either (the "
                    "un-exported model, op by op)"
                )
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
                f"golden: output {name!r}: expected finite values, got {shown} "
                f"that are not (the un-exported model, op by op){hint}"
            )


def tolerance(
    platform: str,
    dtypes: Collection[str],
    output: TensorSpec,
    expected: Sequence[Array],
    precision: str | None,
) -> Tolerance:
    """Decide how far an output may be off on a platform.

    The coarsest floating dtype that its computation passes through decides; the
    absolute part is relative to the output's largest expected value.

    Args:
      platform: cpu, cuda, …
      dtypes: floating dtypes of its computation.
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
