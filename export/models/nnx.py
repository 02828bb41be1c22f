"""A flax.nnx Module as one pure function."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from export.calling import NO_PARAMS, Adapted, Call, Inputs, Params, calls
from export.errors import ExportError, ParamsError
from export.matching import Path, aligned, flatten, floating, is_random, match
from export.models.factories import make, named
from export.reading import Apply, filled, first_read, left_out, of_shape, read_params, refuse_likely
from export.switches import in_attributes, in_call, key_asked_for
from runtime.tensors import Array

_PIN = (
    "graph, rngs, params = nnx.split(model, nnx.RngState, ...); "
    "def apply(params, x): return nnx.merge(graph, rngs, params, copy=True)(x)"
)
# Where random states are among what a module is called with; no param has such a name.
_KEYS = "random state "


def adapt_nnx(
    model: Any,
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]],
    call_args: Mapping[str, Any],
) -> Adapted:
    """Make an nnx Module one pure function.

    Args:
      model: the module, which is left as it is; or a class or function that makes one when called
        with `rngs=`.
      params: its state, or None for what it holds.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
      around: what the params were taken out of, the innermost first.
      call_args: arguments that are no inputs, by name.
    """
    fixed: Collection[Path] | None = None
    if isinstance(model, nnx.Module):
        model = nnx.clone(model)
    elif params is None:
        raise ParamsError(
            f"{NO_PARAMS.format('nnx.Module')}, or a trained module in place of {named(model)}"
        )
    else:
        model, fixed = _without_weights(model)
    model.eval()
    inputs = buckets[0]
    called = _Called.of(model)
    own = called.own
    if params is None and any(isinstance(v, jax.ShapeDtypeStruct) for v in own.values()):
        raise ParamsError(NO_PARAMS.format("nnx.Module"))
    shapes = {"/".join(path): of_shape(value) for path, value in own.items()}
    ways = calls(type(model).__call__, inputs, call_args)
    forms = [(way, called.apply(way)) for way in ways]
    _, apply, read = first_read(forms, lambda call, _: _read(called, call, shapes, buckets))
    needed = {path: value for path, value in own.items() if "/".join(path) in read}
    notes: tuple[str, ...] = ()
    if params is None:
        leaves = {"/".join(path): np.asarray(value) for path, value in needed.items()}
        left = set(shapes) - read
    else:
        saved = around[-1] if around else params
        leaves, left, notes = _from_checkpoint(called, needed, params, saved, fixed)
    castable = frozenset(n for n, a in leaves.items() if floating(a) and n in called.trained)
    return Adapted(filled(apply, shapes, read), leaves, castable, (*notes, *left_out(left)))


def _without_weights(factory: Any) -> tuple[nnx.Module, set[Path] | None]:
    """Make a module without its weights, which would be random ones, if it takes an argument for that.

    Returns:
      The module, and the paths of its plain arrays that are no weights, and stand for those that a
      checkpoint lacks; None where it has none.
    """

    def without_plain_arrays() -> Any:
        made, _ = make(factory, {})
        return None if plain_arrays(made) else made

    abstract_module = nnx.eval_shape(without_plain_arrays)
    if abstract_module is not None:
        return abstract_module, None
    # Arrays that are no Variables have no shapes alone; and those that are alike whatever the
    # random key is can stand for themselves.
    made, twin = (make(factory, {"rngs": nnx.Rngs(seed)})[0] for seed in (0, 1))
    others = plain_arrays(twin)
    return made, {p for p, array in plain_arrays(made).items() if np.array_equal(array, others[p])}


def own_weights(model: nnx.Module) -> Any:
    """Return the weights that a module holds."""
    return nnx.to_pure_dict(nnx.state(model))


@dataclasses.dataclass(frozen=True, slots=True)
class _Called:
    """A module taken apart: what it is, its random states, and its other leaves.

    Attributes:
      model: the module.
      graphdef: what it is.
      states: its random states by path.
      own: its other leaves by path.
      trained: names of those that training moves: what a module holds as a plain array, or as
        statistics, keeps its dtype.
      treedefs: of the random states, and of the other leaves.
    """

    model: nnx.Module
    graphdef: Any
    states: dict[Path, Any]
    own: dict[Path, Any]
    trained: frozenset[str]
    treedefs: tuple[Any, Any]

    @classmethod
    def of(cls, model: nnx.Module) -> "_Called":
        graphdef, random, state = nnx.split(model, _is_random_state, ...)
        flat = _by_path(state)
        params = {
            "/".join(path)
            for path, leaf in flat.items()
            if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.BatchStat)
        }
        return cls(
            model,
            graphdef,
            {path: _kept(_value(leaf)) for path, leaf in _by_path(random).items()},
            {path: _value(leaf) for path, leaf in flat.items()},
            frozenset(params),
            (jax.tree.structure(random), jax.tree.structure(state)),
        )

    @property
    def keys(self) -> dict[str, Any]:
        """Return the random states by names that no param has."""
        return {_KEYS + "/".join(path): value for path, value in self.states.items()}

    def apply(self, call: Call) -> Apply:
        """Return the module as a function of its params and inputs; states may be among those."""

        def apply(named: Params, given: Inputs) -> Any:
            # Merged anew: only this trace may count what it draws.
            given_keys = [named.get(name, value) for name, value in self.keys.items()]
            leaves = [named["/".join(path)] for path in self.own]
            states = zip(self.treedefs, (given_keys, leaves), strict=True)
            merged = nnx.merge(self.graphdef, *(jax.tree.unflatten(*state) for state in states))
            args, kwargs = call.bind(given)
            return merged(*args, **kwargs)

        return apply

    def changed(self, kind: type, changes: Mapping[str, Any]) -> "_Called":
        """Return the module with other attributes of all its modules of one kind."""
        model = nnx.clone(self.model)
        for _, node in nnx.iter_graph(model):
            if type(node) is kind:
                for name, value in changes.items():
                    setattr(node, name, value)
        return _Called.of(model)


def _read(
    called: _Called, call: Call, shapes: Mapping[str, Any], buckets: Sequence[Inputs]
) -> set[str]:
    """Return the names of the params that an answer depends on.

    Raises:
      ExportError: an answer depends on a random state too, or statistics are made anew.
    """
    name = type(called.model).__name__

    def suspects() -> list[str]:
        return _suspects(called, call, shapes, buckets[0])

    try:
        found = _read_all(called, call, shapes, buckets)
    except (AttributeError, TypeError, ValueError) as error:
        # Dropout that has no random state of its own says so.
        if "rngs" not in str(error) or "deterministic" not in str(error):
            raise
        raise ExportError(f"{name}: {key_asked_for('dropout', suspects(), _PIN)}") from error
    drawn = [path for path in called.states if _KEYS + "/".join(path) in found]
    if drawn:
        stream = _stream(called.model, drawn)
        raise ExportError(f"{name}: {key_asked_for(stream, suspects(), _PIN)}")
    anew = _unread_statistics(called, found)
    if anew:
        on = "".join(f" {text}" for text in suspects()[:1])
        raise ExportError(
            f"{name}: expected inference to use its statistics, got {'/'.join(anew[0])} that no "
            f"answer depends on; is it still in training mode?{on}"
        )
    return found


def _read_all(
    called: _Called, call: Call, shapes: Mapping[str, Any], buckets: Sequence[Inputs]
) -> set[str]:
    """Return the names of the params and random states that an answer depends on."""
    every = {**{name: of_shape(key) for name, key in called.keys.items()}, **shapes}
    return read_params(called.apply(call), every, buckets, shapes)


def _suspects(called: _Called, call: Call, shapes: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Return what leaves a module in training mode: an argument, or an attribute of some modules."""

    def quiet(one: _Called, how: Call) -> bool:
        try:
            found = _read_all(one, how, shapes, [inputs])
        except (Exception, SystemExit):  # noqa: BLE001 (whatever the user's model raises)
            return False
        return not (found & set(one.keys) or _unread_statistics(one, found))

    found = in_call(call, inputs, lambda how: quiet(called, how))
    for kind, attributes in () if found else _attributes(called.model):

        def changed(changes: dict[str, Any], kind: type = kind) -> bool:
            return quiet(called.changed(kind, changes), call)

        found += in_attributes(attributes, kind.__name__, changed)
    return found


def _unread_statistics(called: _Called, read: Collection[str]) -> list[Path]:
    """Return the statistics of modules that are in use and read none of them, but their batch's."""
    statistics = [
        path
        for path, variable in _by_path(nnx.state(called.model)).items()
        if isinstance(variable, nnx.BatchStat)
    ]
    used = {tuple(name.split("/")) for name in read}
    owners = {path[:-1] for path in used}
    owners -= {path[:-1] for path in statistics if path in used}
    return [path for path in statistics if path[:-1] in owners]


def _attributes(model: nnx.Module) -> Iterator[tuple[type, dict[str, Any]]]:
    """Yield each kind of module that is not Flax's own, with the attributes of its first one."""
    seen: set[type] = set()
    for _, node in nnx.iter_graph(model):
        kind = type(node)
        if isinstance(node, nnx.Module) and kind not in seen:
            seen.add(kind)
            if not kind.__module__.startswith("flax."):
                yield kind, dict(vars(node))


def _stream(model: nnx.Module, drawn: Collection[Path]) -> str:
    """Return what to call the random states that an answer depends on."""
    dropping = {
        tuple(map(str, path))
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Dropout)
    }
    for path in drawn:
        if "dropout" in path or any(path[:i] in dropping for i in range(len(path))):
            return "dropout"
    return "/".join(next(iter(drawn)))


def _from_checkpoint(
    called: _Called,
    needed: Mapping[Path, Any],
    params: Any,
    saved: Any,
    fixed: Collection[Path] | None,
) -> tuple[dict[str, Array], set[str], tuple[str, ...]]:
    """Return the params that the module reads, names of what is left out, and notes.

    Raises:
      ParamsError: the checkpoint lacks some of them, or is another module's.
    """
    got = _as_own(flatten(params), called)
    plain = set(plain_arrays(called.model))
    added = {
        path: value
        for path, value in needed.items()
        if path not in got and path in plain and (fixed is None or path in fixed)
    }
    given = {path: leaf for path, leaf in {**got, **added}.items() if path in needed}
    extra = {path: leaf for path, leaf in got.items() if path not in called.own}
    leaves = match(needed, given, beside=extra, unread=called.own, saved=saved)
    refuse_likely(extra, list(needed))
    left = {"/".join(path) for path in (*called.own, *extra)} - set(leaves)
    if not added:
        return leaves, left, ()
    names = ", ".join("/".join(path) for path in added)
    return leaves, left, (f"the checkpoint has no {names}: what the model's code makes is taken",)


def _by_path(state: Any) -> dict[Path, Any]:
    return {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def _is_random_state(_path: Any, leaf: Any) -> bool:
    """Whether a leaf is a random state: nnx's own, or a key that a module holds itself."""
    dtype = getattr(_value(leaf), "dtype", None)
    is_key = dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)
    return isinstance(leaf, nnx.RngState) or is_key


def plain_arrays(model: nnx.Module) -> dict[Path, Any]:
    """Return the arrays that a module holds as they are, in no nnx.Variable."""
    return {
        tuple(map(str, path)): value
        for path, value in nnx.iter_graph(model)
        if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    }


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _kept(leaf: Any) -> Any:
    """Return a random state as it is, or zeros of its shape and implementation if it has no values.

    Inference must not use it; it only completes the module.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.lax.full(leaf.shape, 0, leaf.dtype)
    # Not NumPy's: nnx counts in place, which would go unseen.
    return jax.numpy.asarray(leaf)


def _as_own(got: Mapping[Path, Any], called: _Called) -> dict[Path, Any]:
    """Return a checkpoint's leaves under the model's paths, without its random states.

    Random states are those of the model, and the keys and counts that it does not list.
    """
    found = aligned({**called.own, **called.states}, got)
    return {
        path: leaf
        for path, leaf in found.items()
        if path in called.own or not (path in called.states or is_random(path))
    }
