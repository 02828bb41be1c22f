"""A flax.nnx Module as one pure function."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from export.calling import NO_PARAMS, PIN_A_KEY, Adapted, Inputs, Params, bind, modes
from export.errors import ExportError, ParamsError
from export.jaxprs import reached
from export.lowering import refuse_callbacks
from export.matching import Path, aligned, flatten, floating, is_random, match
from export.outputs import name_outputs

_PIN = PIN_A_KEY.format(
    "graph, rngs, params = nnx.split(model, nnx.RngState, ...); "
    "def apply(params, x): return nnx.merge(graph, rngs, params, copy=True)(x)"
)


def adapt_nnx(
    model: nnx.Module,
    params: Any,
    inputs: Inputs,
    around: Sequence[Mapping[str, Any]] = (),
    fixed: Collection[Path] | None = None,
) -> Adapted:
    """Make an nnx Module one pure function.

    Args:
      model: the module; it is changed.
      params: its state, or None for what it holds.
      inputs: shapes and dtypes by name.
      around: what the params were taken out of, the innermost first.
      fixed: paths of its plain arrays that do not depend on its random key, and stand for
        those that `params` lacks; None for all.
    """
    model.eval()
    graphdef, randomness, state = nnx.split(model, nnx.RngState, ...)
    flat = {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    own = {path: _value(leaf) for path, leaf in flat.items()}
    notes: tuple[str, ...] = ()
    if params is None:
        if any(isinstance(v, jax.ShapeDtypeStruct) for v in own.values()):
            raise ParamsError(NO_PARAMS.format("nnx.Module"))
        leaves = {"/".join(path): np.asarray(value) for path, value in own.items()}
    else:
        got = _as_own(flatten(params), own)
        added = {
            path: own[path]
            for path, leaf in flat.items()
            if path not in got and not isinstance(leaf, nnx.Variable)
            if fixed is None or path in fixed
        }
        leaves = match(own, {**got, **added}, saved=around[-1] if around else params)
        if added:
            names = ", ".join("/".join(path) for path in added)
            notes = (f"the checkpoint has no {names}: what the model's code makes is taken",)
    treedef = jax.tree.structure(state)
    # What the model holds as a plain array is no param that training moves: it keeps its dtype.
    params_alone = {
        "/".join(path)
        for path, leaf in flat.items()
        if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.BatchStat)
    }
    castable = frozenset(n for n, a in leaves.items() if floating(a) and n in params_alone)
    switches = modes(type(model).__call__)

    def call(keys: Any, named: Params, given: Inputs) -> Any:
        merged = nnx.merge(graphdef, keys, jax.tree.unflatten(treedef, [named[n] for n in leaves]))
        args, kwargs = bind(type(merged).__call__, given)
        return merged(*args, **kwargs, **switches)

    def apply(named: Params, given: Inputs) -> Any:
        # Keys are made anew: only this trace may change them.
        return call(jax.tree.map(_fixed_key, randomness), named, given)

    def of_keys(keys: Any, arrays: Sequence[Any], values: Sequence[Any]) -> Any:
        named, given = zip(leaves, arrays, strict=True), zip(inputs, values, strict=True)
        return dict(name_outputs(call(keys, dict(named), dict(given))))

    keys = jax.tree.map(_fixed_key, randomness)
    if jax.tree.leaves(keys):
        # To draw a key is not to need it: every RNN of nnx draws one for zeros to begin with.
        jaxpr = jax.make_jaxpr(of_keys)(keys, list(leaves.values()), list(inputs.values()))
        refuse_callbacks(jaxpr)
        if any(reached(jaxpr, len(jax.tree.leaves(keys)))):
            raise ExportError(f"{type(model).__name__}: {_PIN}")
    return Adapted(apply, leaves, castable, notes)


def plain_arrays(model: nnx.Module) -> dict[Path, Any]:
    """Give the arrays that a module holds as they are, in no nnx.Variable."""
    return {
        tuple(map(str, path)): value
        for path, value in nnx.iter_graph(model)
        if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    }


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _fixed_key(leaf: Any) -> Any:
    """Stand in for a random state that inference must not use; it only completes the module."""
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    # Not NumPy's: nnx counts in place, and nobody would see it.
    return jax.numpy.zeros(leaf.shape, leaf.dtype)


def _as_own(got: Mapping[Path, Any], own: Mapping[Path, Any]) -> dict[Path, Any]:
    """Give a checkpoint's leaves the model's paths, and drop its random states.

    Random states are the keys and counts that the model does not list.
    """
    found = aligned(own, got)
    return {path: leaf for path, leaf in found.items() if path in own or not is_random(path)}
