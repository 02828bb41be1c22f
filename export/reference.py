"""The reference: the un-exported model with flat arguments, and its answers to golden inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from export import goldens, infinities, param_values
from export.calling import Adapted
from export.errors import ExportError, ParamsError
from export.golden_inputs import GoldenInputs
from export.outputs import name_outputs
from export.spec import ExportSpec
from export.tracing import precision
from runtime.compare import largest_difference
from runtime.signature import Axis, Signature
from runtime.tensors import Array

# Sizes of the axes by name, then inputs and expected outputs in the signature's order.
Golden = tuple[dict[str, int], tuple[Array, ...], tuple[Array, ...]]


class FlatModel:
    """The adapted model with flat arguments and named outputs.

    Attributes:
      names: of the outputs, known after the first call.
      device: the one that the model names, if it does.
    """

    def __init__(self, adapted: Adapted, inputs: Sequence[str]) -> None:
        self._apply = adapted.apply
        self._inputs = tuple(inputs)
        self.names: list[str] = []
        self.device: jax.Device | None = None

    def call(self, params: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Return the outputs in their order, of params by name and inputs in their order."""
        named = name_outputs(self._apply(params, dict(zip(self._inputs, inputs, strict=True))))
        self.names = [name for name, _ in named]
        return tuple(leaf for _, leaf in named)

    def reference(self, params: Mapping[str, Array], inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Return the outputs as the model computes them op by op.

        Raises:
          ExportError: it fails.
        """
        order = list(params)
        return goldens.reference(
            lambda p, x: self.call(dict(zip(order, p, strict=True)), x),
            [params[name] for name in order],
            inputs,
            self.device,
        )


def answer_goldens(
    spec: ExportSpec,
    signature: Signature,
    questions: Sequence[GoldenInputs],
    flat: FlatModel,
    params: Mapping[str, Array],
    uncast: Mapping[str, Array],
    progress: Callable[[str], None],
) -> tuple[Golden, ...]:
    """Return goldens: sizes of the axes, inputs, and the un-exported model's answers to them.

    Args:
      spec: what was asked for.
      signature: of the model, with its outputs.
      questions: the inputs.
      flat: the model.
      params: that it takes, by name.
      uncast: these, as they were before they were cast.
      progress: called with a sentence before each run.

    Raises:
      ExportError: the model fails, or its answers are not finite or not of the signature.
    """
    found = []
    with precision(spec):
        for i, (arrays, sizes, _) in enumerate(questions, 1):
            # A loop is run step by step here: of all that an export does this can take longest.
            progress(f"running the un-exported model op by op ({i}/{len(questions)})")
            ordered = tuple(arrays[s.name] for s in signature.inputs)
            try:
                expected = flat.reference(params, ordered)
                goldens.refuse_non_finite(
                    signature.outputs,
                    expected,
                    signature.inputs,
                    lambda: param_values.not_finite(params, uncast),
                )
                _check_shapes(signature, expected, len(ordered[0]), sizes)
            except ParamsError:
                raise
            except ExportError as error:
                raise ExportError(f"{error}{_if_too_short(sizes, signature.axes)}") from error
            found.append((sizes, ordered, expected))
    return tuple(found)


def _check_shapes(
    signature: Signature, expected: Sequence[Array], rows: int, sizes: Mapping[str, int]
) -> None:
    for output, array in zip(signature.outputs, expected, strict=True):
        if (array.dtype.name, array.shape) != (output.dtype, output.concrete(rows, sizes)):
            raise ExportError(
                f"output {output.name!r}: expected {output} of the un-exported model, got "
                f"{array.dtype.name}{list(array.shape)}"
            )


def _if_too_short(sizes: Mapping[str, int], axes: Sequence[Axis]) -> str:
    """Return where a model failed that may need longer inputs, and how to declare that."""
    if not any(sizes[axis.name] < axis.sizes[0] for axis in axes):
        return ""
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    flags = " ".join(
        f"--axis {axis.name}=MIN..{','.join(map(str, axis.sizes))}"
        for axis in axes
        if sizes[axis.name] < axis.sizes[0]
    )
    return f"; this was at {shown}: if the model needs more than that, pass {flags}"


def cast_drift(
    flat: FlatModel,
    uncast: Mapping[str, Array],
    signature: Signature,
    made: Sequence[Golden],
    dtype: str,
) -> dict[str, float]:
    """Return output to the largest change that casting params to a dtype made in any golden.

    Raises:
      ExportError: casting makes or loses an infinity.
    """
    outputs = signature.outputs
    before = [flat.reference(uncast, arrays) for _, arrays, _ in made]
    for old, (_, _, new) in zip(before, made, strict=True):
        infinities.refuse_overflow(outputs, new, old, dtype)
    return {
        o.name: max(
            largest_difference(np.asarray(a[i], np.float64), np.asarray(e[i], np.float64))
            for a, (_, _, e) in zip(before, made, strict=True)
        )
        for i, o in enumerate(outputs)
    }
