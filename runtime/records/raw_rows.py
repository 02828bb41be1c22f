"""Vertex AI's `instances`, and columns, that have raw inputs: to rows that are prepared later.

Names decide what an instance has, and where there are none, or an image and a tensor have the same one,
the type in JSON: a string is no tensor, nor is `{"b64": …}` where the bundle takes texts or images, nor
an array that begins with one of them. Nothing is guessed from a content.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.errors import MalformedRequest, SignatureMismatch
from runtime.inputs import Checked
from runtime.preprocessing.preparation import Preparer, RawRows
from runtime.records.instances import read_column
from runtime.records.raw_values import FORMS, RawValue, is_b64
from runtime.records.tensors import kind_of
from runtime.tensors import Array

if TYPE_CHECKING:
    from runtime.model import Model


def read_raw_rows(instances: Sequence[Any], model: "Model") -> RawRows | None:
    """Read instances that have raw inputs; the first one says whether these do.

    Args:
      instances: as JSON has them.
      model: with the raw inputs and the signature.

    Returns:
      Rows to prepare; None where the instances are tensors.

    Raises:
      MalformedRequest: instances are of different forms, or an input is missing.
      SignatureMismatch: a value is none of its input.
    """
    preparer = model.preparer
    if preparer is None or not instances:
        return None
    first = instances[0]
    if _positional(first, preparer):
        instances = _by_position(instances, preparer)
        first = instances[0]
    named = type(first) is dict and not is_b64(first)
    if named:
        raw = {name for name, value in first.items() if preparer.is_raw_json(name, value)}
    else:
        raw = set(preparer.expected_names[:1] if isinstance(first, str | dict) else ())
    if not raw:
        return None
    columns = _columns(instances, preparer) if named else _only_column(instances, preparer)
    inputs: dict[str, Sequence[Any] | Array] = {}
    for name, values in columns.items():
        if name in raw:
            read = FORMS[preparer.kinds[name]].from_json
            inputs[name] = [read(value, _where(name, i)) for i, value in enumerate(values)]
        else:
            spec = next(spec for spec in model.signature.inputs if spec.name == name)
            inputs[name] = read_column(spec, values, model.signature)
    return RawRows(inputs, len(instances), _where)


def _positional(instance: Any, preparer: Preparer) -> bool:
    """Whether an instance is an array of its inputs, the raw ones first: a tensor has no strings."""
    return (
        type(instance) is list
        and len(instance) == len(preparer.expected_names)
        and isinstance(instance[0], str | dict)
    )


def _by_position(instances: Sequence[Any], preparer: Preparer) -> list[dict[str, Any]]:
    names = preparer.expected_names
    for i, instance in enumerate(instances):
        if not _positional(instance, preparer):
            raise MalformedRequest(
                f"instances[{i}]: expected an array of {len(names)} inputs like the others, got "
                f"{kind_of(instance)}"
            )
    return [dict(zip(names, instance, strict=True)) for instance in instances]


def _where(name: str, row: int) -> str:
    """Name a raw input of an instance in a message."""
    return f"instances[{row}]: input {name!r}"


def _only_column(instances: Sequence[Any], preparer: Preparer) -> dict[str, list[Any]]:
    """Return the column of raw values without a name, of a model that takes nothing else."""
    names = preparer.expected_names
    if len(names) != 1:
        expected = ", ".join(map(repr, names))
        raise MalformedRequest(
            f"instances[0]: expected an object with {expected}, got {kind_of(instances[0])}"
        )
    for i, value in enumerate(instances):
        if not isinstance(value, str) and not is_b64(value):
            kind = preparer.kinds[names[0]]
            article = "an" if kind == "image" else "a"
            raise MalformedRequest(
                f"instances[{i}]: expected {article} {kind} like the others, got {kind_of(value)}"
            )
    return {names[0]: list(instances)}


def _columns(instances: Sequence[Any], preparer: Preparer) -> dict[str, list[Any]]:
    names = preparer.expected_names
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, instance in enumerate(instances):
        where = f"instances[{i}]"
        if type(instance) is not dict:
            raise MalformedRequest(
                f"{where}: expected an object like the others, got {kind_of(instance)}"
            )
        unknown = next((key for key in instance if key not in columns), None)
        if unknown is not None:
            expected = ", ".join(map(repr, names))
            raise MalformedRequest(f"{where}: expected {expected}, got {unknown[:100]!r}")
        for name, values in columns.items():
            if name in instance:
                values.append(instance[name])
            elif name in preparer.optional_names:
                if values:
                    raise MalformedRequest(f"{where}: expected {name!r} as in others, got none")
            else:
                raise MalformedRequest(f"{where}: expected {name!r}, got none")
    for name, values in columns.items():
        if values and len(values) != len(instances):
            raise MalformedRequest(f"instances[0]: expected {name!r} as in others, got none")
    return {name: values for name, values in columns.items() if values}


def read_raw_column(name: str, values: Any, kind: str) -> list[RawValue]:
    """Return the raw values of a column, each as JSON has those of its kind.

    Raises:
      SignatureMismatch: it is no list, or has something else in it.
    """
    if not isinstance(values, list):
        raise SignatureMismatch(
            f"input {name!r}: expected a list of {kind}s, got {kind_of(values)}"
        )
    read = FORMS[kind].from_json
    return [read(value, f"input {name!r}[{i}]") for i, value in enumerate(values)]


def raw_or_checked(inputs: Mapping[str, Any], model: "Model") -> RawRows | list[Checked]:
    """Return a request's inputs as rows to prepare where a raw one is among them, else checked.

    Args:
      inputs: by name: lists of raw values, and arrays.
      model: of these inputs.

    Returns:
      RawRows, or a list of one Checked.

    Raises:
      SignatureMismatch: tensors do not fit.
    """
    preparer = model.preparer
    if preparer is None or not preparer.takes(inputs):
        return [model.checker.check(inputs)]
    return RawRows(inputs, max(len(inputs[n]) for n in inputs if preparer.is_raw(n, inputs[n])))
