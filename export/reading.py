"""Which of its params a model reads when it answers; the others have no place in a bundle.

What a checkpoint has and what a model lists are more than that: collections that modules sow
into, heads that training alone uses. What an answer depends on is found by tracing.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax

from export.calling import Call, Inputs, Params
from export.errors import ExportError, ParamsError
from export.jaxprs import passed_on, random_sources, read_inputs
from export.lowering import refuse_callbacks
from export.matching import SHOWN, Path
from export.outputs import name_outputs

Apply = Callable[[Params, Inputs], Any]

# The name that Flax makes for a module that is made where it is called.
_GIVEN_BY_FLAX = re.compile(r"[A-Z]\w*_\d+")


def read_params(
    apply: Apply,
    shapes: Mapping[str, Any],
    buckets: Iterable[Inputs],
    wanted: Collection[str] | None = None,
) -> set[str]:
    """Return the names of the params that an answer depends on, in any bucket.

    Args:
      apply: the model.
      shapes: shape and dtype of each param, by name.
      buckets: shapes and dtypes of the inputs of each bucket; one after the other is traced until
        all that are wanted are read.
      wanted: names of params; None for all.

    Raises:
      ExportError: the model calls back into Python.
    """
    wanted = set(shapes if wanted is None else wanted)
    first, *others = buckets
    read = _read_at(apply, shapes, first)
    for inputs in others:
        if wanted <= read:
            break
        try:
            read |= _read_at(apply, shapes, inputs)
        except (Exception, SystemExit):  # noqa: BLE001 (lowering meets it again, and knows its cause)
            return read | wanted
    return read


def _read_at(apply: Apply, shapes: Mapping[str, Any], inputs: Inputs) -> set[str]:
    answer, arrays, values = _in_order(apply, shapes, inputs)
    jaxpr = jax.make_jaxpr(lambda *given: dict(name_outputs(answer(*given))))(arrays, values)
    refuse_callbacks(jaxpr)
    flags = read_inputs(jaxpr)[: len(arrays)]
    return {name for name, flag in zip(shapes, flags, strict=True) if flag}


def changed(stateful: Apply, shapes: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Return the names of the variables that a call changes.

    Args:
      stateful: params by name and inputs to the variables by name, as they are after the call.
      shapes: shape and dtype of each param, by name.
      inputs: shapes and dtypes of the inputs.
    """
    answer, arrays, values = _in_order(stateful, shapes, inputs)
    after = jax.eval_shape(answer, arrays, values)
    jaxpr = jax.make_jaxpr(lambda *given: [answer(*given)[name] for name in after])(arrays, values)
    places = {name: place for place, name in enumerate(shapes)}
    return [n for n, place in zip(after, passed_on(jaxpr), strict=True) if place != places[n]]


def draws(apply: Apply, shapes: Mapping[str, Any], inputs: Inputs) -> bool:
    """Whether an answer depends on random bits that are drawn for it."""
    answer, arrays, values = _in_order(apply, shapes, inputs)
    return bool(random_sources(jax.make_jaxpr(answer)(arrays, values)))


def first_read[Form: Apply](
    forms: Sequence[tuple[Call, Form]], read: Callable[[Call, Form], set[str]]
) -> tuple[Call, Form, set[str]]:
    """Return the first of several forms of a model that can be traced, and what it reads.

    Raises:
      ExportError: a form is refused for what it does.
      Exception: none can be traced; what the first one raised.
    """
    failures: list[BaseException] = []
    for call, apply in forms:
        try:
            return call, apply, read(call, apply)
        except ExportError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever the user's model raises)
            failures.append(error)
    raise failures[0]


def traces(apply: Apply, shapes: Mapping[str, Any], inputs: Inputs) -> bool:
    """Whether a model can be traced with params and inputs of these shapes and dtypes."""
    return answers(apply, shapes, inputs) is not None


def answers(apply: Apply, shapes: Mapping[str, Any], inputs: Inputs) -> list[Any] | None:
    """Return shapes and dtypes of what a model answers; None if it cannot be traced."""
    answer, arrays, values = _in_order(apply, shapes, inputs)
    try:
        return jax.tree.leaves(jax.eval_shape(answer, arrays, values))
    except (Exception, SystemExit):  # noqa: BLE001 (whatever the user's model raises)
        return None


def _in_order(apply: Apply, shapes: Mapping[str, Any], inputs: Inputs) -> tuple[Any, Any, Any]:
    """Return a model as a function of lists: JAX sorts dicts, and inputs by place would be swapped."""

    def answer(params: Sequence[Any], values: Sequence[Any]) -> Any:
        named = dict(zip(shapes, params, strict=True))
        return apply(named, dict(zip(inputs, values, strict=True)))

    return answer, [of_shape(shape) for shape in shapes.values()], list(inputs.values())


def of_shape(array: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype that an array has in JAX."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(array.shape, dtype)


def filled(apply: Apply, shapes: Mapping[str, Any], read: Collection[str]) -> Apply:
    """Return the model as a function of those params alone that it reads.

    Zeros complete the others: no answer depends on them.
    """
    unread = {name: of_shape(shape) for name, shape in shapes.items() if name not in read}
    if not unread:
        return apply

    def of_read(params: Params, inputs: Inputs) -> Any:
        zeros = {name: jax.numpy.zeros(s.shape, s.dtype) for name, s in unread.items()}
        return apply({**zeros, **params}, inputs)

    return of_read


def left_out(names: Collection[str]) -> tuple[str, ...]:
    """Return a note on variables that are left out since no answer depends on them, if any are."""
    if not names:
        return ()
    return (f"left out {_count(names)}, on which no answer depends: {_some(names)}",)


def unread(names: Collection[str], params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note on params that are kept though no answer depends on them, if any are."""
    if not names:
        return ()
    spent = sum(params[name].nbytes for name in names)
    note = f"the bundle has {_count(names)}, on which no answer depends: {_some(names)}"
    return (f"{note} ({spent} bytes)",)


def _count(names: Collection[str]) -> str:
    return f"{len(names)} param{'s' * (len(names) > 1)}"


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def refuse_likely(extra: Mapping[Path, Any], expected: Collection[Path]) -> None:
    """Raise ParamsError for params that the model does not have and may well have had in training.

    They are not read; but a model with fewer layers than its checkpoint, or without its biases,
    would answer wrongly for that very reason.

    Args:
      extra: leaves in the checkpoint that the model does not have; what is no number is no param.
      expected: paths that it has.
    """
    alike = {_pattern(path): path for path in expected}
    beside = {path[:-1]: path for path in expected}
    problems = []
    for path, leaf in extra.items():
        if isinstance(leaf, bool | str | bytes):
            continue
        like = alike.get(_pattern(path)) or beside.get(path[:-1])
        if like or any(_GIVEN_BY_FLAX.fullmatch(word) for word in path):
            near = f", where the model has {'/'.join(like)}" if like else ""
            problems.append(f"extra {'/'.join(path)}{near}")
    if problems:
        more = f"; and {len(problems) - SHOWN} more extra" if len(problems) > SHOWN else ""
        raise ParamsError(
            f"params do not fit the model: {'; '.join(problems[:SHOWN])}{more}; was it trained with "
            "another configuration?"
        )


def _pattern(path: Path) -> Path:
    return tuple(re.sub(r"\d+", "#", word) for word in path)
