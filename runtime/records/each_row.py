"""Instances that fail by themselves: those that fit are read together, the others have an error each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import InvalidInput, MalformedRequest
from runtime.inputs import Checked
from runtime.preprocessing.preparation import RawRows
from runtime.records.instances import read_rows
from runtime.records.raw_rows import read_raw_rows
from runtime.records.tensors import kind_of

if TYPE_CHECKING:
    from runtime.model import Model


class EachRow(NamedTuple):
    """Instances of which some may have failed.

    Attributes:
      parts: inputs of those that fit, as `read_instances` returns them.
      good: their numbers, in order.
      errors: of the others, by their number.
    """

    parts: RawRows | list[Checked]
    good: Sequence[int]
    errors: dict[int, InvalidInput]


def read_instances(
    instances: Sequence[Any], model: "Model", *, booleans: bool = True
) -> RawRows | list[Checked]:
    """Return instances as rows to prepare, or as checked inputs; see `read_raw_rows`, `read_rows`.

    Raises:
      InvalidInput: names the first instance that does not fit.
    """
    raw = read_raw_rows(instances, model)
    return read_rows(instances, model, booleans=booleans) if raw is None else raw


def read_each(instances: Sequence[Any], model: "Model") -> EachRow:
    """Read instances, whatever is wrong with some of them.

    An instance has to be of the form of the first one that fits, since all are read together. Errors
    name inputs and no instance: they stand where its answer would.

    Args:
      instances: as JSON has them.
      model: with the raw inputs and the signature.
    """
    try:
        return _together(instances, range(len(instances)), {}, model)
    except InvalidInput:
        pass
    errors: dict[int, InvalidInput] = {}
    alone = enumerate(_error([instance], model) for instance in instances)
    first = next((i for i, error in alone if error is None), None)
    beside = [] if first is None else [instances[first]]
    for i, instance in enumerate(instances):
        if i != first and (error := _error([*beside, instance], model)):
            errors[i] = error
    good = [i for i in range(len(instances)) if i not in errors]
    return _together([instances[i] for i in good], good, errors, model)


def _together(
    instances: Sequence[Any], good: Sequence[int], errors: dict[int, InvalidInput], model: "Model"
) -> EachRow:
    parts = read_instances(instances, model)
    if isinstance(parts, RawRows):
        parts = parts._replace(where=lambda name, _: f"input {name!r}", each=True)
    return EachRow(parts, good, errors)


def _error(instances: Sequence[Any], model: "Model") -> InvalidInput | None:
    """Return what is wrong with the last of some instances."""
    try:
        read_instances(instances, model)
    except InvalidInput as error:
        last = len(instances) - 1
        if last and str(error).startswith("instances[0]: "):
            got = kind_of(instances[last])
            return MalformedRequest(f"expected the form of the first instance that fits, got {got}")
        return type(error)(str(error).removeprefix(f"instances[{last}]: "))
    return None
