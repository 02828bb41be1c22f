"""What may have caused a failure of a model, and what its trace shows that its author may not know."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from export.errors import ExportError, ParamsError
from export.jaxprs import CALLS, inner
from export.matching import flatten
from runtime.signature import TensorSpec

# What code raises that got arrays of shapes it did not expect, and what it then speaks of.
_OF_SHAPES = (TypeError, ValueError, IndexError)
# What code raises that got all inputs as a dict, and took it for an array.
_OF_DICTS = (AttributeError, TypeError, ValueError)
_DICT = re.compile(r"\bdict\b")
_WORDS = re.compile(
    r"shape|dimension|ndim|\bax[ei]s\b|\brank|broadcast|\bsize|unpack|out of (bounds|range)|channel"
    r"|feature|\blength|input|\b\dd\b"
)
# Params that a message lists: the kernels among them, which show what their layers take.
_SHOWN = 3
# Operations that leave values as they are.
_MOVING = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "copy"}


@contextlib.contextmanager
def naming_shapes(inputs: Sequence[TensorSpec], params: Any) -> Iterator[None]:
    """Name the inputs and the first params behind an error that shapes may have caused.

    Args:
      inputs: as they were declared.
      params: the tree of the checkpoint; of it shapes alone are looked at.
    """
    try:
        yield
    except ParamsError:
        raise  # which compares shapes itself
    except ExportError as error:
        cause = error.__cause__
        if len(inputs) > 1 and isinstance(cause, _OF_DICTS) and _DICT.search(str(cause)):
            names = ", ".join(spec.name for spec in inputs)
            raise type(error)(
                f"{error}; a model of one argument gets several inputs as a dict: expected one input, "
                f"or a model that takes them by name, got {names}"
            ) from cause
        if not _of_shapes(cause):
            raise
        declared = ", ".join(f"{spec.name}: {spec}" for spec in inputs)
        raise type(error)(f"{error}; it got {declared}{_kernels(params)}") from cause


def _of_shapes(cause: BaseException | None) -> bool:
    """Whether code that raised this may have got arrays of shapes that it did not expect."""
    if isinstance(cause, ArithmeticError | AssertionError):
        return True
    if isinstance(cause, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
        return False  # of values that a trace does not have
    # Flax raises its own for shapes.
    own = "Shape" in type(cause).__name__
    return own or (isinstance(cause, _OF_SHAPES) and bool(_WORDS.search(str(cause).casefold())))


def _kernels(params: Any) -> str:
    """List the first params of two or more axes: what the layers were trained on."""
    try:
        leaves = flatten({} if params is None else params)
    except Exception:  # noqa: BLE001 (a tree of anything; the error at hand is the one to report)
        return ""
    kernels = [
        f"{'/'.join(path)} {getattr(leaf, 'dtype', '')}{list(np.shape(leaf))}"
        for path, leaf in leaves.items()
        if np.ndim(leaf) > 1
    ]
    if not kernels:
        return ""
    more = ", …" if len(kernels) > _SHOWN else ""
    return (
        f", and the params are {', '.join(kernels[:_SHOWN])}{more}: are the axes, sizes and dtype "
        "those that it was trained on?"
    )


def float_notes(inputs: Sequence[TensorSpec], jaxpr: Any, skip: int) -> list[str]:
    """Name inputs of integers without a range that the model takes as floats alone.

    Args:
      inputs: as they were declared.
      jaxpr: the closed jaxpr of one bucket.
      skip: its arguments that come before the inputs.
    """
    notes = []
    for spec, variable in zip(inputs, jaxpr.jaxpr.invars[skip:], strict=True):
        ranged = spec.minimum is not None or spec.maximum is not None or spec.mask
        if spec.dtype not in ("int16", "int32", "int64", "uint32", "uint64") or ranged:
            continue
        if (to := _float_of(jaxpr.jaxpr, variable)) is not None:
            notes.append(
                f"input {spec.name!r} is {spec.dtype}, and the model makes it {to} at once: as it is "
                f"declared, 1.5 is refused; if values may have fractions, declare "
                f"{spec.name}:{to}[{','.join(map(str, spec.shape))}]"
            )
    return notes


def _float_of(jaxpr: Any, variable: Any) -> str | None:
    """Return the one floating dtype that every use of a variable turns it into, or None."""
    if any(out is variable for out in jaxpr.outvars):
        return None
    uses = [
        (equation, place)
        for equation in jaxpr.eqns
        for place, used in enumerate(equation.invars)
        if used is variable
    ]
    found = {
        _float_of(jaxpr, equation.outvars[0])
        if equation.primitive.name in _MOVING and place == 0
        else _float_of_use(equation, place)
        for equation, place in uses
    }
    return found.pop() if len(found) == 1 else None


def _float_of_use(equation: Any, place: int) -> str | None:
    name, inside = equation.primitive.name, list(inner(equation))
    if name in CALLS and inside and len(inside[0].jaxpr.invars) == len(equation.invars):
        return _float_of(inside[0].jaxpr, inside[0].jaxpr.invars[place])
    if name in ("convert_element_type", "dot_general"):
        to = equation.outvars[0].aval.dtype
        return to.name if jax.numpy.issubdtype(to, jax.numpy.floating) else None
    return None
