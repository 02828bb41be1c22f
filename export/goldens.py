"""Goldens: the answers of the un-exported model run op by op, and how far they bind.

The reference must not be made by what is being tested. XLA's CPU compiler has returned
NaN for whole bfloat16 programs whose operations are right one by one, so the model
runs under `jax.disable_jit`, each operation on its own, on the CPU.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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
    device: jax.Device | None = None,
) -> tuple[Array, ...]:
    """Run a function op by op.

    Args:
      function: (params, inputs) to outputs, flat.
      params: host arrays.
      inputs: host arrays.
      device: the one that the function names; None for the CPU.

    Raises:
      ExportError: it fails.
    """
    chosen = device or jax.local_devices(backend="cpu")[0]
    mesh = jax.sharding.get_mesh()
    place = chosen if mesh.empty else NamedSharding(mesh, PartitionSpec())
    # A GPU would multiply in TF32, and this is what others are compared with.
    precision = jax.config.jax_default_matmul_precision
    exact = precision if precision or chosen.platform == "cpu" else "highest"
    try:
        with (
            jax.default_device(chosen),
            jax.default_matmul_precision(exact),
            jax.disable_jit(),
        ):
            placed = [jax.device_put(array, place) for array in (*params, *inputs)]
            outputs = function(placed[: len(params)], placed[len(params) :])
            return tuple(np.asarray(output) for output in outputs)
    except ExportError:
        raise
    except (Exception, SystemExit) as error:
        raise ExportError(f"the model cannot be run op by op: {describe(error)}") from error


def refuse_non_finite(
    specs: Sequence[TensorSpec],
    outputs: Sequence[Array],
    inputs: Sequence[TensorSpec],
    cause: Callable[[], tuple[str, bool]],
) -> None:
    """Refuse an expected answer that is NaN, or infinite where none is declared.

    Args:
      specs: of the outputs.
      outputs: the un-exported model's answers.
      inputs: of the model; an integer one without a range may be why there is NaN, where the
        params are not.
      cause: returns what is wrong with the params, or nothing, and whether that may be meant; called
        where an answer is bad.

    Raises:
      ParamsError: there is a cause.
      ExportError: there is none.
    """
    for spec, output in zip(specs, outputs, strict=True):
        if "float" not in spec.dtype:
            continue
        wide = output.astype(np.float64)
        bad = np.isnan(wide) if spec.nonfinite else ~np.isfinite(wide)
        if not bad.any():
            continue
        shown = f"{int(bad.sum())} of {bad.size}"
        found, may_be_meant = cause()
        if found:
            meant = _hint(spec, wide[bad], ()) if may_be_meant and not np.isnan(wide).any() else ""
            raise ParamsError(
                f"{found}; so {shown} values of output {spec.name!r} are not finite either (the "
                f"un-exported model, op by op){meant}"
            )
        expected = "finite values or infinities" if spec.nonfinite else "finite values"
        seen = " and ".join(_firsts(wide, bad))
        raise ExportError(
            f"golden: output {spec.name!r}: expected {expected}, got {seen}, {shown} that are "
            f"not (the un-exported model, op by op){_hint(spec, wide[bad], inputs)}"
        )


def _firsts(values: Array, bad: Array) -> list[str]:
    """Write each kind of value that is not finite, and where it stands first."""
    kinds = (("NaN", np.isnan), ("-inf", np.isneginf), ("inf", np.isposinf))
    found = []
    for name, is_kind in kinds:
        places = np.argwhere(is_kind(values) & bad)
        if len(places):
            found.append(f"{name} at {places[0].tolist()}")
    return found


def _hint(spec: TensorSpec, bad: Array, inputs: Sequence[TensorSpec]) -> str:
    if not np.isnan(bad).any():
        return (
            "; where the model means it, as for masked logits or suppressed tokens, pass "
            f"--allow-infinite {spec.name}"
        )
    loose = [
        s.name
        for s in inputs
        if "int" in s.dtype and s.minimum is None and s.maximum is None and not s.mask
    ]
    if loose:
        return f"; is a value of {loose[0]!r} out of range? pass --range {loose[0]}=0:N"
    ranged = [s for s in inputs if isinstance(s.maximum, int) and s.minimum is not None]
    if ranged:
        # Golden inputs of a narrower range would hide what a server then answers with NaN.
        name, low, high = ranged[0].name, ranged[0].minimum, ranged[0].maximum
        return (
            f"; does the range {low}:{high} of {name!r} reach beyond what the model knows, as an "
            f"embedding of fewer rows does? Then narrow it, --range {name}={low}:N"
        )
    return "; pass representative inputs with --golden FILE"


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
    """Return the size of an output's ordinary values, whatever sentinels stand among them.

    A model that fills masked places with -1e9, or -inf, must not loosen the tolerance of the others:
    the largest value counts as far as 100 times the lower quartile of those that are not 0.
    """
    values = np.concatenate([np.abs(np.float64(e)).reshape(-1) for e in expected])
    values = values[(values > 0) & np.isfinite(values)]
    return float(min(values.max(), 100 * np.quantile(values, 0.25))) if values.size else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
