"""What `hk.transform` and `hk.transform_with_state` return as one pure function."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax

from export.calling import MODES, NO_PARAMS, Adapted, Call, Inputs, Params, calls
from export.checkpoints import as_tree
from export.errors import ExportError, ParamsError
from export.matching import Path, aligned, flatten, floating, match
from export.reading import (
    changed,
    draws,
    filled,
    first_read,
    left_out,
    of_shape,
    read_params,
    refuse_likely,
    traces,
)
from export.switches import in_call, key_asked_for, state_changed

_PIN = "def apply(params, x): return transformed.apply(params, jax.random.key(0), x)"
_NAME = "the Haiku function"
_PARTS = ("params", "state")


def adapt_haiku(
    model: Any,
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]],
    call_args: Mapping[str, Any],
) -> Adapted:
    """Make a transformed function one pure function of named params.

    Args:
      model: what `hk.transform` or `hk.transform_with_state` returned, with or without
        `hk.without_apply_rng`.
      params: its params; `(params, state)` or `{"params": …, "state": …}` where it has a state.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
      around: what the params were taken out of, the innermost first; the state is taken from there.
      call_args: arguments that are no inputs, by name.

    Raises:
      ExportError: it draws random numbers or changes its state when it answers, or it cannot be
        called so.
      ParamsError: the params are missing, or another model's.
    """
    if not isinstance(model, hk.Transformed | hk.TransformedWithState):
        raise ExportError(
            "model: expected what hk.transform or hk.transform_with_state returns, got "
            f"{type(model).__name__}; of hk.multi_transform pass one function, "
            "hk.TransformedWithState(model.init, model.apply.METHOD)"
        )
    if params is None:
        raise ParamsError(NO_PARAMS.format("Haiku function, which holds none"))
    one = _Transformed.of(model)
    inputs = buckets[0]
    ways = calls(one.signature, inputs, call_args)
    got = flatten(one.parts(as_tree(params), around))
    made = one.made(ways, inputs)
    own = got if made is None else {**flatten(made)}
    if made is not None and one.stateful:
        _expect_order(own, got)
    got = aligned(own, got)
    shapes = {"/".join(path): of_shape(leaf) for path, leaf in own.items()}
    forms = [(call, one.apply(call, own)) for call in ways]

    def read(call: Call, _: Any) -> set[str]:
        return _read(one, call, own, shapes, buckets)

    _, apply, found = first_read(forms, read)
    needed = {path: leaf for path, leaf in own.items() if "/".join(path) in found}
    extra = {path: leaf for path, leaf in got.items() if path not in own}
    given = {path: leaf for path, leaf in got.items() if path in needed}
    if one.stateful and {path[0] for path in needed} - {path[0] for path in got} == {"state"}:
        raise ParamsError(
            "params: expected (params, state), or both by these names, since hk.transform_with_state "
            "made the model, got params alone"
        )
    leaves = match(
        needed, given, beside=extra, unread=own, saved=around[-1] if around else as_tree(params)
    )
    refuse_likely(extra, list(needed))
    castable = frozenset(
        n
        for n, a in leaves.items()
        if floating(a) and not (one.stateful and n.startswith("state/"))
    )
    left = {"/".join(path) for path in (*own, *extra)} - found
    return Adapted(filled(apply, shapes, found), leaves, castable, left_out(left))


@dataclasses.dataclass(frozen=True, slots=True)
class _Transformed:
    """A transformed function, and how its init and apply are called.

    Attributes:
      model: the pair of init and apply.
      stateful: whether it has a state.
      keyed: whether apply takes a random key.
      signature: a function of that function's parameters, behind one for the variables.
    """

    model: Any
    stateful: bool
    keyed: bool
    signature: Callable[..., Any]

    @classmethod
    def of(cls, model: Any) -> "_Transformed":
        own = list(inspect.signature(model.init).parameters.values())[1:]
        stateful = isinstance(model, hk.TransformedWithState)
        taken = len(inspect.signature(model.apply).parameters) - len(own)

        def signature() -> None: ...

        first = inspect.Parameter("variables", inspect.Parameter.POSITIONAL_ONLY)
        signature.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
        return cls(model, stateful, taken > 1 + stateful, signature)

    def parts(self, tree: Any, around: Sequence[Mapping[str, Any]]) -> Any:
        """Return the variables in the form of their names: params alone, or params and state.

        Raises:
          ParamsError: there is no state, and the function has one.
        """
        if not self.stateful:
            alone = isinstance(tree, Mapping) and set(tree) <= {*_PARTS} and "params" in tree
            return tree["params"] if alone else tree
        if isinstance(tree, tuple | list) and len(tree) == 2:
            return dict(zip(_PARTS, tree, strict=True))
        if isinstance(tree, Mapping) and set(_PARTS) <= set(tree):
            return {part: tree[part] for part in _PARTS}
        beside = next((outer["state"] for outer in around if "state" in outer), None)
        if beside is not None:
            return {"params": tree, "state": as_tree(beside)}
        return {"params": tree.get("params", tree) if isinstance(tree, Mapping) else tree}

    def made(self, ways: Sequence[Call], inputs: Inputs) -> Any:
        """Return the variables that init makes, as shapes; None where it makes none with these inputs."""
        for call in ways:
            # What init is called with makes statistics, which inference alone may not.
            training = {n: not v for n, v in call.switches.items() if n in MODES}
            for switches in (call.switches, {**call.switches, **training}):
                way = dataclasses.replace(call, switches=switches)

                def init(*values: Any, way: Call = way) -> Any:
                    args, kwargs = way.bind(dict(zip(inputs, values, strict=True)))
                    return self.model.init(jax.random.PRNGKey(0), *args, **kwargs)

                try:
                    made = jax.eval_shape(init, *inputs.values())
                except (Exception, SystemExit):  # noqa: BLE001, S112 (whatever the user's model raises)
                    continue
                return dict(zip(_PARTS, made, strict=True)) if self.stateful else made
        return None

    def both(self, call: Call, own: Mapping[Path, Any], named: Params, given: Inputs) -> Any:
        """Return the answer, and the state after the call; None where there is none."""
        tree: dict[str, dict[str, Any]] = {part: {} for part in _PARTS} if self.stateful else {}
        for path in own:
            _put(tree, path, named["/".join(path)])
        args, kwargs = call.bind(given)
        # What is drawn from it is refused: Haiku itself refuses to run without.
        key = (jax.random.PRNGKey(0),) if self.keyed else ()
        if not self.stateful:
            return self.model.apply(tree, *key, *args, **kwargs), None
        return self.model.apply(tree["params"], tree["state"], *key, *args, **kwargs)

    def apply(self, call: Call, own: Mapping[Path, Any]) -> Callable[[Params, Inputs], Any]:
        """Return the function of params by name and inputs by name."""
        return lambda named, given: self.both(call, own, named, given)[0]


def _expect_order(own: Mapping[Path, Any], got: Mapping[Path, Any]) -> None:
    """Raise ParamsError where params and state were exchanged."""

    def named(leaves: Mapping[Path, Any], part: str) -> set[Path]:
        return {path[1:] for path in leaves if path[0] == part}

    params, state = (named(own, part) for part in _PARTS)
    if params != state and (named(got, "state"), named(got, "params")) == (params, state):
        raise ParamsError("params: expected (params, state), got them the other way round")


def _put(tree: dict[str, Any], path: Path, leaf: Any) -> None:
    here = tree
    for word in path[:-1]:
        here = here.setdefault(word, {})
    here[path[-1]] = leaf


def _read(
    one: _Transformed,
    call: Call,
    own: Mapping[Path, Any],
    shapes: Mapping[str, Any],
    buckets: Sequence[Inputs],
) -> set[str]:
    """Return the names of the variables that an answer depends on.

    Raises:
      ExportError: the function asks for a key, or changes its state.
    """

    def after(way: Call) -> Callable[[Params, Inputs], Any]:
        def state(named: Params, given: Inputs) -> dict[str, Any]:
            found = one.both(way, own, named, given)[1] or {}
            return {"/".join(("state", *path)): leaf for path, leaf in flatten(found).items()}

        return state

    def quiet(way: Call) -> bool:
        apply = one.apply(way, own)
        if not traces(apply, shapes, buckets[0]) or draws(apply, shapes, buckets[0]):
            return False
        return not (one.stateful and changed(after(way), shapes, buckets[0]))

    def refusal() -> ExportError:
        return ExportError(
            f"{_NAME}: {key_asked_for('rng', in_call(call, buckets[0], quiet), _PIN)}"
        )

    try:
        found = read_params(one.apply(call, own), shapes, buckets)
    except ValueError as error:
        if "RNG" in type(error).__name__:  # Haiku's MissingRNGError, which has no public name
            raise refusal() from error
        raise
    if draws(one.apply(call, own), shapes, buckets[0]):
        raise refusal()
    moved = changed(after(call), shapes, buckets[0]) if one.stateful else []
    if moved:
        raise ExportError(state_changed(_NAME, moved, in_call(call, buckets[0], quiet)))
    return found
