"""An Equinox Module, or a function of one, as one pure function."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from export.calling import NO_PARAMS, Adapted, Call, Inputs, Params, calls, required
from export.errors import ExportError, ParamsError, few_names
from export.matching import floating, match
from export.models.equinox_modules import STATE, Parts, with_params, without_weights
from export.models.factories import is_factory, known_arguments, named
from export.models.frameworks import framework_in
from export.reading import (
    Apply,
    changed,
    draws,
    filled,
    first_read,
    left_out,
    of_shape,
    read_params,
    refuse_likely,
)
from export.switches import key_asked_for, state_changed, still_training

_PIN = (
    "def apply(model, x): return jax.vmap(lambda row: model(row, key=jax.random.key(0)))(x), with the "
    "module as params"
)
_KEY = "key"
# Numbers of rows, of which one that is no size of the model shows whether it takes one row or all.
_TRIED_ROWS = (3, 5, 7, 11, 13, 17, 19, 23)


def adapt_equinox(
    model: Any,
    params: Any,
    buckets: Sequence[Inputs],
    around: Sequence[Mapping[str, Any]],
    call_args: Mapping[str, Any],
) -> Adapted:
    """Make an Equinox Module one pure function of batches.

    Args:
      model: a Module, which takes one row or all; a tuple of one and its State; what makes these
        when called with `key=`; or a function of a Module and inputs, which takes all rows.
      params: a tree of the model's own form, such as `eqx.partition` returns; its arrays by name;
        an `.eqx` file; or None for what the model has. For a function the Module.
      buckets: shapes and dtypes of the inputs by name, of each bucket.
      around: what the params were taken out of, the innermost first.
      call_args: arguments that are no inputs, by name.

    Raises:
      ExportError: it draws random numbers or changes its state when it answers, or it cannot be
        called so.
      ParamsError: the params are missing, or another model's.
    """
    function, model, params = _resolved(model, params)
    one = Parts.of(model)
    if params is None and any(isinstance(v, jax.ShapeDtypeStruct) for v in one.own.values()):
        raise ParamsError(NO_PARAMS.format("Equinox Module"))
    one, given = with_params(one, params)
    lacking = ["/".join(p) for p, v in one.own.items() if isinstance(v, jax.ShapeDtypeStruct)]
    if given is None and lacking:
        raise ParamsError(f"params do not fit the model: missing {few_names(lacking)}")
    shapes = {"/".join(path): of_shape(leaf) for path, leaf in one.own.items()}
    way = (_function_ways if function else _module_ways)(one, function, buckets[0], call_args)
    forms = [(form.call, form) for form in way]
    try:
        _, form, read = first_read(forms, lambda _, form: _read(one, form, shapes, buckets))
    except TypeError as error:
        # `eqx.partition` leaves None where it took an array.
        if shapes or params is not None or "NoneType" not in str(error):
            raise
        raise ParamsError(
            f"{NO_PARAMS.format('Equinox Module')}; of eqx.partition pass both parts, as model and params"
        ) from error
    needed = {path: leaf for path, leaf in one.own.items() if "/".join(path) in read}
    if given is None:
        leaves = {"/".join(path): np.asarray(leaf) for path, leaf in needed.items()}
        left = set(shapes) - read
    else:
        extra = {path: leaf for path, leaf in given.items() if path not in one.own}
        got = {path: leaf for path, leaf in given.items() if path in needed}
        saved = around[-1] if around else given
        leaves = match(needed, got, beside=extra, unread=one.own, saved=saved)
        refuse_likely(extra, list(needed))
        left = {"/".join(path) for path in (*one.own, *extra)} - read
    castable = frozenset(
        n for n, a in leaves.items() if floating(a) and n.partition("/")[0] != STATE
    )
    apply = filled(form, shapes, read)
    notes = _rows_note(form, apply, leaves, shapes, buckets[0])
    return Adapted(apply, leaves, castable, (*notes, *left_out(left)))


def _resolved(model: Any, params: Any) -> tuple[Callable[..., Any] | None, Any, Any]:
    """Return a function of a module if it is one, the module, which may lack its arrays, and params.

    Raises:
      ExportError: it is neither, or a class that needs a configuration.
      ParamsError: there are no weights for what makes a module.
    """
    if is_factory(model):
        if params is None:
            raise ParamsError(
                f"{NO_PARAMS.format('Equinox Module')}, or a trained module in place of {named(model)}"
            )
        return None, without_weights(model), params
    if isinstance(model, type):
        known_arguments(model, {})
    if isinstance(model, tuple | eqx.Module):
        return None, model, params
    if framework_in(params) == "equinox":
        return model, params, None
    raise ExportError(
        "model: expected an Equinox Module, or a tuple of one and its State, got a "
        f"{type(model).__name__}"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Form:
    """A way to call a module or a function of one.

    Attributes:
      one: the module.
      call: how inputs become arguments.
      function: what takes the module; None for the module itself.
      by_row: whether it takes one row.
      keyed: whether it is passed a key, which no answer may depend on.
      state_name: the parameter that takes the state, if there is one.
    """

    one: Parts
    call: Call
    function: Callable[..., Any] | None = None
    by_row: bool = False
    keyed: bool = False
    state_name: str = STATE

    def __call__(self, named: Params, given: Inputs) -> Any:
        """Answer a batch."""
        return self.both(named, given)[0]

    def after(self, named: Params, given: Inputs) -> dict[str, Any]:
        """Return the state by name, as it is after a call."""
        _, state = self.both(named, given)
        if state is None:
            return {}
        names = ["/".join(path) for path in self.one.own if path[:1] == (STATE,)]
        return dict(zip(names, jax.tree.leaves(state), strict=True))

    def both(self, named: Params, given: Inputs) -> tuple[Any, Any]:
        """Return the answer, and the state after the call; None where there is none."""
        tree = self.one.rebuilt(named)
        module, state = tree if self.one.stateful else (tree, None)

        def called(*values: Any) -> tuple[Any, Any]:
            extra: dict[str, Any] = {_KEY: jax.random.PRNGKey(0)} if self.keyed else {}
            if state is not None and self.function is None:
                # A copy: a State can be used once.
                extra[self.state_name] = jax.tree.map(lambda leaf: leaf, state)
            call = dataclasses.replace(self.call, switches={**self.call.switches, **extra})
            args, kwargs = call.bind(dict(zip(given, values, strict=True)))
            if self.function is not None:
                return self.function(tree, *args, **kwargs), None
            answer = module(*args, **kwargs)
            if (
                state is not None
                and isinstance(answer, tuple)
                and isinstance(answer[-1], eqx.nn.State)
            ):
                *answers, new = answer
                return answers[0] if len(answers) == 1 else tuple(answers), new
            return answer, state

        return (jax.vmap(called, axis_name="batch") if self.by_row else called)(*given.values())


def _function_ways(
    one: Parts, function: Any, inputs: Inputs, call_args: Mapping[str, Any]
) -> list[_Form]:
    return [_Form(one, call, function) for call in calls(function, inputs, call_args)]


def _module_ways(one: Parts, _: Any, inputs: Inputs, call_args: Mapping[str, Any]) -> list[_Form]:
    """Return the ways to call a module: on a row before all rows, without a key before with one."""
    module = one.tree[0] if one.stateful else one.tree
    if not callable(module):
        raise ExportError(
            f"model: expected an Equinox Module with __call__, got {one.name}; export a function "
            "apply(model, x) with the module as params"
        )
    taken = {n: None for n in (STATE, _KEY) if n in inputs or n in call_args}
    function = type(module).__call__
    ways = calls(function, inputs, call_args, module)
    parameters = {p.name: p for p in ways[0].parameters}
    state_name = _state_parameter(one, list(parameters.values()), inputs)
    has_key = _KEY in parameters and _KEY not in taken
    needs_key = has_key and required(parameters[_KEY])
    keys = ([True] if needs_key else [False, True]) if has_key else [False]
    return [
        _Form(one, call, None, by_row, keyed, state_name)
        for by_row in (True, False)
        for keyed in keys
        for call in ways
    ]


def _state_parameter(one: Parts, parameters: Sequence[inspect.Parameter], inputs: Inputs) -> str:
    """Return the name of the parameter that takes the state: `state`, or the one behind the inputs."""
    names = [p.name for p in parameters]
    if not one.stateful or STATE in names:
        return STATE
    behind = [p.name for p in parameters if p.name not in inputs and required(p)]
    behind = behind if set(inputs) & set(names) else behind[len(inputs) :]
    if not behind:
        raise ExportError(
            f"model: expected {one.name}.__call__ to take its State, got parameters "
            f"{', '.join(names)}; pass the module alone"
        )
    return behind[0]


def _read(
    one: Parts, form: _Form, shapes: Mapping[str, Any], buckets: Sequence[Inputs]
) -> set[str]:
    """Return the names of the arrays that an answer depends on.

    Raises:
      ExportError: an answer depends on the key, or a call changes the state.
    """
    found = read_params(form, shapes, buckets)

    def suspects() -> list[str]:
        return [text for module in one.modules() for text in still_training(module)]

    if form.keyed and draws(form, shapes, buckets[0]):
        raise ExportError(f"{one.name}: {key_asked_for(_KEY, suspects(), _PIN)}")
    moved = changed(form.after, shapes, buckets[0])
    if moved:
        raise ExportError(state_changed(one.name, moved, suspects()))
    return found


def _rows_note(
    form: _Form,
    apply: Apply,
    leaves: Params,
    shapes: Mapping[str, Any],
    inputs: Inputs,
) -> tuple[str, ...]:
    """Return a note on a module that takes all rows; nothing for one that takes a row.

    Raises:
      ExportError: it takes both, and answers differently.
    """
    if form.function is not None:
        return ()
    if not form.by_row:
        return (f"{form.one.name} is called with all rows, since it cannot be traced with one",)
    arrays = [*leaves.values(), *inputs.values()]
    sizes = {size for array in arrays for size in array.shape}
    count = next((rows for rows in _TRIED_ROWS if rows not in sizes), 29)
    rng = np.random.default_rng(0)
    rows = {
        name: np.asarray(rng.standard_normal((count, *a.shape[1:])) > 0).astype(a.dtype)
        if not jax.numpy.issubdtype(a.dtype, jax.numpy.floating)
        else rng.standard_normal((count, *a.shape[1:])).astype(a.dtype)
        for name, a in inputs.items()
    }
    whole = filled(dataclasses.replace(form, by_row=False), shapes, set(leaves))
    try:
        others = jax.tree.leaves(whole(leaves, rows))
    except (Exception, SystemExit):  # noqa: BLE001 (it takes a row alone, as most do)
        return ()
    answers = jax.tree.leaves(apply(leaves, rows))
    same = len(answers) == len(others) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, b in zip(answers, others, strict=True)
    )
    batch_first = all(np.shape(b)[:1] == (count,) for b in others)
    if not same and batch_first:
        raise ExportError(
            f"{form.one.name}: expected a module that takes one row, or all rows, got one that takes "
            "both and answers differently; export a function that calls it as you mean it: "
            "def apply(model, x): return jax.vmap(model)(x), with the module as params"
        )
    return ()
