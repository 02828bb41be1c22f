"""Any model made one pure function: `apply(params, inputs) -> outputs`.

A linen Module, an nnx Module and a plain function end up alike: named params as NumPy
arrays, named inputs, no state, no randomness, dropout off. That function is both what
is lowered and, run op by op, the reference that goldens come from.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import errors as flax_errors
from flax import linen, nnx

from export.checkpoints import as_tree
from export.errors import ExportError, ParamsError, first_line
from export.lowering import describe
from export.spec import nearest
from runtime.signature import TensorSpec
from runtime.tensors import Array, numpy_dtype

Params = Mapping[str, Any]
Inputs = Mapping[str, Any]
Path = tuple[str, ...]

# Arguments that switch training behaviour, and what inference wants of them.
_MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "eval": True,
}
# What tells a train state from a model's variables.
_TRAIN_STATE = {"step", "opt_state", "tx", "apply_fn", "rng", "rngs", "key", "epoch"}

NO_PARAMS = "params: expected the weights of the {}, got none; pass --params"
PIN_A_KEY = (
    "inference needs a random key, and a program has none; pin one by exporting a function: {}"
)
PIN_LINEN = PIN_A_KEY.format(
    "def apply(params, x): return model.apply(params, x, rngs={{'{}': jax.random.key(0)}})"
)
PIN_NNX = PIN_A_KEY.format(
    "graph, rngs, params = nnx.split(model, nnx.RngState, ...); "
    "def apply(params, x): return nnx.merge(graph, rngs, params, copy=True)(x)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Adapted:
    """A model as one pure function.

    Attributes:
      apply: (params by name, inputs by name) to any tree of arrays.
      params: the weights by name, in a fixed order.
      castable: names of the params that `dtype` may cast: floating, no statistics.
      notes: what was decided on the user's behalf, a sentence each.
    """

    apply: Callable[[Params, Inputs], Any]
    params: dict[str, Array]
    castable: frozenset[str]
    notes: tuple[str, ...] = ()


def adapt(
    model: Any, params: Any, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> Adapted:
    """Make a model one pure function.

    Args:
      model: a linen Module; an nnx Module, or a class or function that makes one
        when called with `rngs=`; or `apply(params, inputs)`, which gets the only input
        as an array or all of them as a dict, or each by its name where its
        parameters are called so.
      params: a tree of arrays; None for an nnx Module that has its own.
      inputs: what it will be called with.
      sizes: a size that the model takes for each bucketed axis.

    Raises:
      ParamsError: params are missing, extra or have other shapes.
      ExportError: the model cannot be called so.
    """
    try:
        return _adapt(model, params, inputs, sizes)
    except ExportError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's model raises
        raise ExportError(f"the model cannot be traced: {describe(error)}") from error


def _adapt(
    model: Any, params: Any, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> Adapted:
    shapes = abstract(inputs, 2, sizes)
    if is_factory(model) and takes_rngs(model):
        # Its weights would be random ones: only their shapes are of interest.
        made = nnx.eval_shape(lambda: make(model, {})[0])
        if params is None:
            raise ParamsError(NO_PARAMS.format("nnx.Module"))
        return _adapt_nnx(made, params)
    if is_factory(model):
        model = make(model, {})[0]
    if isinstance(model, linen.Module):
        return _adapt_linen(model, params, shapes)
    if isinstance(model, nnx.Module):
        return _adapt_nnx(nnx.clone(model), params)
    if callable(model):
        return _adapt_function(model, params, shapes)
    raise ExportError(
        "model: expected an ExportSpec, a flax Module or factory, or apply(params, inputs), "
        f"got {type(model).__name__}"
    )


def is_factory(model: Any) -> bool:
    """Say whether this makes a model when called with no argument but `rngs`."""
    if isinstance(model, type) and issubclass(model, linen.Module | nnx.Module):
        return True
    if not callable(model) or isinstance(model, linen.Module | nnx.Module):
        return False
    return not any(_required(p) for n, p in _parameters(model).items() if n != "rngs")


def takes_rngs(factory: Any) -> bool:
    """Say whether this makes an nnx.Module with random weights."""
    return "rngs" in _parameters(factory)


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """Give what is still to be passed; a signature of an nnx class itself says nothing."""
    if isinstance(factory, functools.partial):
        rest = list(_parameters(factory.func).items())[len(factory.args) :]
        return {name: p for name, p in rest if name not in factory.keywords}
    if not isinstance(factory, type):
        return dict(inspect.signature(factory).parameters)
    initialize = factory.__init__  # type: ignore[misc]
    parameters = dict(list(inspect.signature(initialize).parameters.items())[1:])
    if issubclass(factory, linen.Module):
        return {n: p for n, p in parameters.items() if n not in ("parent", "name")}
    return parameters


def _required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def known_arguments(
    factory: Any, config: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Tell configuration keys that a class or function takes from those it does not.

    Returns:
      What it takes, and the keys that are ignored, sorted.

    Raises:
      ExportError: it needs a value that the configuration does not have.
    """
    parameters = _parameters(factory)
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    known = {key: value for key, value in config.items() if takes_all or key in parameters}
    missing = [n for n, p in parameters.items() if _required(p) and n not in {*known, "rngs"}]
    if missing:
        name = getattr(factory, "__name__", type(factory).__name__)
        raise ExportError(
            f"{name}: expected values for {', '.join(missing)}, got none; pass --config FILE.json"
        )
    return known, tuple(sorted(set(config) - set(known)))


def make(factory: Any, config: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Call a class or function with the configuration keys that it knows.

    Returns:
      What it made, and the keys that were ignored, sorted.
    """
    known, ignored = known_arguments(factory, config)
    if takes_rngs(factory):
        known.setdefault("rngs", nnx.Rngs(0))
    return factory(**known), ignored


def _adapt_linen(model: linen.Module, params: Any, inputs: Inputs) -> Adapted:
    modes = _modes(type(model).__call__)
    if params is None:
        raise ParamsError(NO_PARAMS.format("linen Module"))

    def call(variables: Any, given: Inputs) -> Any:
        args, kwargs = _bind(type(model).__call__, given, skip=1)
        try:
            return model.apply(variables, *args, **kwargs, **modes)
        except flax_errors.InvalidRngError as error:
            stream = re.search(r'PRNG for "(\w+)"', str(error))
            pin = PIN_LINEN.format(stream[1] if stream else "params")
            raise ExportError(f"{type(model).__name__}: {pin}") from error
        except flax_errors.ModifyScopeVariableError as error:
            raise ExportError(
                f"{type(model).__name__}: expected inference to leave its variables alone, got "
                f"{first_line(error)}; is it still in training mode?"
            ) from error

    def init(given: Inputs) -> Any:
        args, kwargs = _bind(type(model).__call__, given, skip=1)
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        return linen.meta.unbox(model.init(keys, *args, **kwargs, **modes))

    # As a list: JAX sorts the keys of a dict, and inputs by place would be swapped.
    expected = jax.eval_shape(
        lambda values: init(dict(zip(inputs, values, strict=True))), list(inputs.values())
    )
    wanted = {name: tree for name, tree in expected.items() if name != "intermediates"}
    tree, notes = _collections(params, wanted)
    leaves = match(flatten(wanted), flatten(tree))
    treedef = jax.tree.structure(wanted)
    castable = frozenset(n for n, a in leaves.items() if n.startswith("params/") and floating(a))

    def apply(named: Params, given: Inputs) -> Any:
        return call(jax.tree.unflatten(treedef, [named[n] for n in leaves]), given)

    return Adapted(apply, leaves, castable, tuple(notes))


def _collections(params: Any, wanted: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Give the variable collections in what was restored: {'params': …, 'batch_stats': …}."""
    params = as_tree(params)
    if not isinstance(params, Mapping):
        raise ParamsError(f"params: expected a dict of params, got {type(params).__name__}")
    tree = linen.meta.unbox(dict(params))
    if "params" not in tree or "params" not in wanted:
        return ({"params": tree} if set(wanted) == {"params"} else tree), []
    dropped = sorted(set(tree) - set(wanted)) if set(tree) & _TRAIN_STATE else []
    kept = {
        name: value for name, value in tree.items() if name not in dropped and value is not None
    }
    inner = kept["params"]
    if isinstance(inner, Mapping) and "params" in inner and "params" not in wanted["params"]:
        # A TrainState made from all variables: params={'params': …, 'batch_stats': …}.
        kept = dict(inner)
    if not dropped:
        return kept, []
    return kept, [f"left out of the checkpoint: {', '.join(dropped)}, not variables of the model"]


def _adapt_nnx(model: nnx.Module, params: Any) -> Adapted:
    model.eval()
    graphdef, randomness, state = nnx.split(model, nnx.RngState, ...)
    flat = {tuple(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    own = {path: variable.get_value() for path, variable in flat.items()}
    kinds = {"/".join(path): type(variable) for path, variable in flat.items()}
    if params is None:
        if any(isinstance(v, jax.ShapeDtypeStruct) for v in own.values()):
            raise ParamsError(NO_PARAMS.format("nnx.Module"))
        leaves = {"/".join(path): np.asarray(value) for path, value in own.items()}
    else:
        leaves = match(own, _without_rngs(flatten(params), own))
    treedef = jax.tree.structure(state)
    castable = frozenset(
        n for n, a in leaves.items() if floating(a) and not issubclass(kinds[n], nnx.BatchStat)
    )
    modes = _modes(type(model).__call__)

    def apply(named: Params, given: Inputs) -> Any:
        keys = jax.tree.map(_fixed_key, randomness)  # made anew: only this trace may change them
        merged = nnx.merge(graphdef, keys, jax.tree.unflatten(treedef, [named[n] for n in leaves]))
        before = _counts(merged)
        args, kwargs = _bind(type(merged).__call__, given, skip=1)
        outputs = merged(*args, **kwargs, **modes)
        if any(a is not b for a, b in zip(before, _counts(merged), strict=True)):
            raise ExportError(f"{type(model).__name__}: {PIN_NNX}")
        return outputs

    return Adapted(apply, leaves, castable)


def _counts(model: nnx.Module) -> list[Any]:
    return jax.tree.leaves(nnx.state(model, nnx.RngCount))


def _fixed_key(leaf: Any) -> Any:
    """Stand in for a random state that inference must not use; it only completes the module."""
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    # Not NumPy's: nnx counts in place, and nobody would see it.
    return jax.numpy.zeros(leaf.shape, leaf.dtype)


def _without_rngs(got: dict[Path, Any], own: Mapping[Path, Any]) -> dict[Path, Any]:
    """Drop random states from a checkpoint: keys and counts that the model does not list."""
    random = {"key", "count"}
    return {p: v for p, v in got.items() if p in own or not (set(p[-1:]) & random)}


def _adapt_function(function: Callable[..., Any], params: Any, inputs: Inputs) -> Adapted:
    tree = {} if params is None else params
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {"/".join(_words(path)) or "params": _array(leaf) for path, leaf in paths}
    if len(leaves) != len(paths):
        raise ParamsError("params: expected different names for different params")
    castable = frozenset(
        n for n, a in leaves.items() if floating(a) and "batch_stats" not in n.split("/")
    )

    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 2 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        names = ", ".join(p.name for p in parameters)
        raise ExportError(f"model: expected a function apply(params, inputs), got one of ({names})")
    modes = _modes(function)

    def with_form(form: Callable[[Inputs], tuple[tuple[Any, ...], dict[str, Any]]]) -> Any:
        def apply(named: Params, given: Inputs) -> Any:
            args, kwargs = form(given)
            tree = jax.tree.unflatten(treedef, [named[n] for n in leaves])
            return function(tree, *args, **kwargs, **modes)

        return apply

    def spread(given: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _bind(function, given, skip=1)

    def whole(given: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (dict(given),), {}

    required = [p.name for p in parameters[1:] if _required(p) and p.name not in _MODES]
    apply = with_form(spread)
    if len(inputs) == len(required) == 1 and required[0] not in inputs:
        apply = _first_that_traces(apply, with_form(whole), leaves, inputs)
    return Adapted(apply, leaves, castable)


def _first_that_traces(
    array: Any, mapping: Any, leaves: Mapping[str, Array], inputs: Inputs
) -> Any:
    """Tell `apply(params, x)` from `apply(params, inputs)` with `inputs["x"]` by trying."""
    params = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in leaves.items()}
    try:
        jax.eval_shape(array, params, inputs)
    except (Exception, SystemExit):  # noqa: BLE001 (the user's function; lowering reports it)
        try:
            jax.eval_shape(mapping, params, inputs)
        except (Exception, SystemExit):  # noqa: BLE001 (neither: the array form's error is shown)
            return array
        return mapping
    return array


def abstract(
    inputs: Sequence[TensorSpec], batch: int, sizes: Mapping[str, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Give shapes and dtypes of inputs at one bucket, by name."""
    return {
        s.name: jax.ShapeDtypeStruct(s.concrete(batch, sizes), numpy_dtype(s.dtype)) for s in inputs
    }


def _modes(call: Callable[..., Any]) -> dict[str, bool]:
    known = inspect.signature(call).parameters
    return {name: value for name, value in _MODES.items() if name in known}


def _bind(
    call: Callable[..., Any], given: Inputs, skip: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give inputs by name where parameters are called so, else by position, else as one dict."""
    parameters = list(inspect.signature(call).parameters.values())[skip:]
    free = [p for p in parameters if p.name not in _MODES]
    names = [p.name for p in free if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in free if _required(p)}
    any_place = any(p.kind == p.VAR_POSITIONAL for p in free)
    any_name = any(p.kind == p.VAR_KEYWORD for p in free) and not any_place
    if (any_name or set(given) <= set(names)) and needed <= set(given):
        return (), dict(given)
    positional = [p for p in free if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if len(given) > 1 and len(required) == 1 and len(positional) < len(given):
        return (dict(given),), {}
    if any_place:
        return tuple(given.values()), {}
    # Some by name and some by position would be a guess, and perhaps a swap.
    strangers = [name for name in given if name not in names]
    if len(strangers) < len(given) or not len(required) <= len(given) <= len(positional):
        hint = nearest(strangers[0], names) if strangers else ""
        raise ExportError(
            f"inputs: expected {', '.join(names)} as the model has them, got "
            f"{', '.join(given)}{hint}"
        )
    return tuple(given.values()), {}


def flatten(tree: Any) -> dict[Path, Any]:
    """Flatten a tree of dicts and lists to leaves by path; nnx's trailing `value` is dropped."""
    found = {
        tuple(_words(path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    if found and all(path[-1:] == ("value",) for path in found):
        return {path[:-1]: leaf for path, leaf in found.items()}
    return found


def _words(path: Sequence[Any]) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def match(expected: Mapping[Path, Any], got: Mapping[Path, Any]) -> dict[str, Array]:
    """Hold params against what the model has.

    Returns:
      Arrays by name, in the model's order.

    Raises:
      ParamsError: lists what is missing, extra, or has another shape.
    """
    problems = [f"missing {_say(p, expected[p])}" for p in expected if p not in got]
    problems += [f"extra {_say(p, got[p])}" for p in got if p not in expected]
    problems += [
        f"{'/'.join(p)}: expected {_brief(expected[p])}, got {_brief(got[p])}"
        for p in expected
        if p in got and not _alike(expected[p], got[p])
    ]
    if problems:
        shown = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ParamsError(f"params do not fit the model: {shown}{more}{_hint(expected, got)}")
    return {"/".join(path): _array(got[path]) for path in expected}


def _hint(expected: Mapping[Path, Any], got: Mapping[Path, Any]) -> str:
    tops = sorted({path[0] for path in got if len(path) > 1} - {path[0] for path in expected})
    likely = [top for top in tops if top in ("params", "ema_params", "model", "state", "target")]
    if not likely:
        return ""
    return f"; the checkpoint has {', '.join(tops[:8])}: pass --params-path {likely[0]}?"


def _alike(a: Any, b: Any) -> bool:
    return tuple(a.shape) == tuple(np.shape(b)) and floating(a) == floating(b)


def _say(path: Path, leaf: Any) -> str:
    return f"{'/'.join(path)} {_brief(leaf)}"


def _brief(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", type(leaf).__name__)
    return f"{dtype}{list(np.shape(leaf))}"


def floating(array: Any) -> bool:
    """Say whether an array's dtype is floating, ml_dtypes' included."""
    return bool(jax.numpy.issubdtype(array.dtype, jax.numpy.floating))


def _array(leaf: Any) -> Array:
    array = np.asarray(leaf)
    if array.dtype == np.dtype(object):
        raise ParamsError(f"params: expected arrays, got {type(leaf).__name__}")
    # A checkpoint of another machine can hold its bytes the other way round.
    return array.astype(array.dtype.newbyteorder("="), copy=False)
