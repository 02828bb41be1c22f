"""Vertex AI's `instances`, and columns, that have raw inputs: to rows that are prepared later.

Names decide what an instance has, and for one without names its type in JSON: a string is no
tensor, nor is `{"b64": …}` where the bundle takes texts, nor an array that begins with one of them.
Nothing is guessed from a content.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.errors import MalformedRequest, SignatureMismatch
from runtime.inputs import Checked
from runtime.preprocessing.preparation import Preparer, RawRows
from runtime.records.instances import read_column
from runtime.records.tensors import from_base64, kind_of
from runtime.tensors import Array

if TYPE_CHECKING:
    from runtime.model import Model

_B64 = {"b64"}


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
    named = type(first) is dict and first.keys() != _B64
    if not (preparer.takes(first) if named else isinstance(first, str | dict)):
        return None
    columns = _columns(instances, preparer) if named else _only_column(instances, preparer)
    inputs: dict[str, Sequence[Any] | Array] = {}
    for name, values in columns.items():
        if name in preparer.raw_names:
            inputs[name] = [text_of(value, _where(name, i)) for i, value in enumerate(values)]
        else:
            spec = next(spec for spec in model.signature.inputs if spec.name == name)
            inputs[name] = read_column(spec, values, model.signature)
    return RawRows(inputs, len(instances), _where)


def _positional(instance: Any, preparer: Preparer) -> bool:
    """Whether an instance is an array of its inputs, the texts first: a tensor has no strings."""
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
    """Return the column of texts without a name, of a model that takes nothing else."""
    names = preparer.expected_names
    if len(names) != 1:
        expected = ", ".join(map(repr, names))
        raise MalformedRequest(
            f"instances[0]: expected an object with {expected}, got {kind_of(instances[0])}"
        )
    for i, value in enumerate(instances):
        if not isinstance(value, str) and not (type(value) is dict and value.keys() == _B64):
            raise MalformedRequest(
                f"instances[{i}]: expected a text like the others, got {kind_of(value)}"
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


def read_raw_column(name: str, values: Any) -> list[str]:
    """Return the texts of a column, each a string or `{"b64": …}`.

    Raises:
      SignatureMismatch: it is no list, or has something else in it.
    """
    if not isinstance(values, list):
        raise SignatureMismatch(f"input {name!r}: expected a list of texts, got {kind_of(values)}")
    return [text_of(value, f"input {name!r}[{i}]") for i, value in enumerate(values)]


def text_of(value: Any, where: str) -> str:
    """Return a text: a string, or UTF-8 in `{"b64": …}`.

    Raises:
      SignatureMismatch: it is neither.
    """
    if isinstance(value, str):
        return value
    if type(value) is not dict or value.keys() != _B64 or not isinstance(value["b64"], str):
        raise SignatureMismatch(f"{where}: expected a text, got {kind_of(value)}")
    return decoded(from_base64(value["b64"], where), where)


def decoded(data: bytes, where: str) -> str:
    """Return the text that bytes are in UTF-8.

    Raises:
      SignatureMismatch: they are none.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise SignatureMismatch(
            f"{where}: expected a text in UTF-8, got the byte {byte:#x} at {error.start}"
        ) from None


def raw_or_checked(inputs: Mapping[str, Any], model: "Model") -> RawRows | list[Checked]:
    """Return a request's inputs as rows to prepare where a raw one is among them, else checked.

    Args:
      inputs: by name: lists of texts, and arrays.
      model: of these inputs.

    Returns:
      RawRows, or a list of one Checked.

    Raises:
      SignatureMismatch: tensors do not fit.
    """
    preparer = model.preparer
    if preparer is None or not preparer.takes(inputs):
        return [model.checker.check(inputs)]
    return RawRows(inputs, max(len(inputs[name]) for name in preparer.raw_names if name in inputs))
