"""Outputs that rightly hold infinities: which they are, and what goldens show of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from export.errors import ExportError
from runtime.errors import nearest
from runtime.signature import TensorSpec
from runtime.tensors import Array


def declare(outputs: Sequence[TensorSpec], allowed: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the outputs, those that are allowed to hold infinities declared to do so.

    Raises:
      ExportError: one that is allowed does not exist, or is not of floats.
    """
    named = {output.name: output for output in outputs}
    for name in allowed:
        if name not in named:
            raise ExportError(
                f"allow_infinite: expected some of {', '.join(named)}, got {name!r}"
                f"{nearest(name, named)}"
            )
        if "float" not in named[name].dtype:
            raise ExportError(
                f"allow_infinite: expected an output of floats, got {name!r}, {named[name]}"
            )
        named[name] = dataclasses.replace(named[name], nonfinite="infinities")
    return tuple(named.values())


def notes(outputs: Sequence[TensorSpec], expected: Sequence[Sequence[Array]]) -> list[str]:
    """Return a sentence for each output that may be infinite and is in no golden.

    Args:
      outputs: of the signature.
      expected: for each golden the model's own answers, in the signature's order.
    """
    return [
        f"output {output.name!r} may be infinite, and is not in any golden: that the program then "
        "answers as the model does is not shown; pass rows that make it so with --golden FILE"
        for i, output in enumerate(outputs)
        if output.nonfinite and all(np.isfinite(np.float64(e[i])).all() for e in expected)
    ]


def refuse_overflow(
    outputs: Sequence[TensorSpec], cast: Sequence[Array], uncast: Sequence[Array], dtype: str
) -> None:
    """Raise ExportError where casting params makes or loses an infinity, which is never meant.

    Args:
      outputs: of the signature.
      cast: answers of the model with cast params, in the signature's order.
      uncast: those with the params that were given.
      dtype: that params are cast to.
    """
    for spec, after, before in zip(outputs, cast, uncast, strict=True):
        old, new = np.float64(before), np.float64(after)
        changed = (np.isinf(new) | np.isinf(old)) & (new != old)
        if changed.any():
            place = tuple(np.argwhere(changed)[0].tolist())
            raise ExportError(
                f"golden: output {spec.name!r}: expected {old[place]:.6g} at {list(place)}, got "
                f"{new[place]:.6g} with params cast to {dtype}; export with another --dtype, or "
                "without"
            )
