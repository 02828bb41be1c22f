"""What a model returns, flattened to names, and which of its axes are whose."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from export.errors import ExportError
from runtime.signature import BATCH, DTYPE_BYTES, Dim, TensorSpec, notation

Shapes = Sequence[jax.ShapeDtypeStruct]
Key = tuple[int, tuple[int, ...]]  # (batch, sizes of the axes)


def name_outputs(tree: Any) -> list[tuple[str, Any]]:
    """Flatten outputs to named arrays.

    One array is `output`; those of a tuple are `output_0`, `output_1`, …; dict keys and
    fields of NamedTuples are names, nested ones joined by `.`. None is left out.

    Raises:
      ExportError: no array is returned, or something that is none, or two would have one name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = [(_name(path), leaf) for path, leaf in leaves]
    if not named:
        raise ExportError("outputs: expected at least one array, got none")
    for name, leaf in named:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)):
            raise ExportError(
                f"output {name!r}: expected an array, got {type(leaf).__name__}; return arrays, or "
                "tuples, NamedTuples, dicts or flax.struct dataclasses of them"
            )
    names = [name for name, _ in named]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ExportError(f"outputs: expected different names, got {twice[0]!r} twice")
    return named


def _name(path: Sequence[Any]) -> str:
    words = [jax.tree_util.keystr((key,), simple=True) for key in path]
    name = ".".join(words)
    if not words:
        return "output"
    return f"output_{name}" if words[0].isdigit() else name


def output_specs(
    names: Sequence[str], shapes: Mapping[Key, Shapes], axes: Sequence[str]
) -> tuple[TensorSpec, ...]:
    """Find out which axes of each output are the batch or a bucketed axis.

    Args:
      names: of the outputs.
      shapes: what the model returns at each (batch, axis sizes); at least two batches,
        and at least two sizes of each axis where the model allows it.
      axes: names of the bucketed axes, in the order of the sizes.

    Raises:
      ExportError: an output's leading axis is not the batch, another of its axes
        follows none of the declared ones, or its dtype is none that bundles have.
    """
    specs = []
    for i, name in enumerate(names):
        seen = {key: tuple(outputs[i].shape) for key, outputs in shapes.items()}
        first_key, first = next(iter(seen.items()))
        if (
            any(len(s) != len(first) for s in seen.values())
            or not first
            or any(s[0] != key[0] for key, s in seen.items())
        ):
            shown = " and ".join(f"{list(s)} for {k[0]} rows" for k, s in list(seen.items())[:2])
            raise ExportError(
                f"output {name!r}: expected the batch as its leading axis, got {shown}; return "
                "one row of output for each row of input"
            )
        dims: list[Dim] = [BATCH, *(_dim(name, d, seen, axes) for d in range(1, len(first)))]
        dtype = shapes[first_key][i].dtype.name
        if dtype not in DTYPE_BYTES:
            raise ExportError(
                f"output {name!r}: expected a dtype of {', '.join(DTYPE_BYTES)}, got {dtype}"
            )
        specs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(dims)))
    return tuple(specs)


def _dim(name: str, d: int, seen: Mapping[Key, tuple[int, ...]], axes: Sequence[str]) -> Dim:
    sizes = {shape[d] for shape in seen.values()}
    if len(sizes) == 1:
        return sizes.pop()
    for a, axis in enumerate(axes):
        if all(shape[d] == key[1][a] for key, shape in seen.items()):
            return axis
    shown = [notation("", shape) for shape in list(seen.values())[:3]]
    raise ExportError(
        f"output {name!r}: expected axis {d} to be fixed or one of {', '.join(axes) or 'none'}, "
        f"got {', '.join(shown)} in different buckets"
    )
