"""`range`, `pad` and `mask`: what is said of inputs that are declared by name, dtype and shape."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from export.errors import ExportError
from runtime.errors import nearest
from runtime.signature import TensorSpec

OPTIONS = ("range", "pad", "mask")
_EXAMPLES = {"range": "0:30521", "pad": "0"}
_RANGE = re.compile(r"\s*(-?\d+)\s*:\s*(?:(-?\d+)|(\w+))\s*")


def with_options(
    inputs: Sequence[TensorSpec], given: Mapping[str, Any], prefix: str = ""
) -> list[TensorSpec]:
    """Return inputs with what options say of them.

    Args:
      inputs: as they were declared.
      given: range, pad and mask, each as a mapping from an input's name to a value, or as a flag
        has it: texts `NAME=VALUE` for range and pad, names for mask.
      prefix: of an option in messages, `--` for flags.

    Raises:
      ExportError: names the option, what it takes and what it got.
    """
    specs = {spec.name: spec for spec in inputs}
    for option, read in _READERS.items():
        for name, value in _pairs(f"{prefix}{option}", option, given.get(option)):
            if name not in specs:
                raise ExportError(
                    f"{prefix}{option}: expected an input of {', '.join(specs)}, got {name!r}"
                    f"{nearest(str(name), specs)}"
                )
            changes = read(f"{prefix}{option}", name, value)
            specs[name] = dataclasses.replace(specs[name], **changes)
    return list(specs.values())


def _pairs(what: str, option: str, given: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each input that an option names, with its value."""
    if given is None:
        return
    if isinstance(given, Mapping):
        yield from given.items()
        return
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        form = (
            "names of inputs such as 'attention_mask'"
            if option == "mask"
            else f"values by input such as {{'ids': {_EXAMPLES[option]!r}}}"
        )
        raise ExportError(f"{what}: expected {form}, got {given!r}")
    for text in texts:
        yield (text, True) if option == "mask" else pair(what, text, f"NAME={_EXAMPLES[option]}")


def pair(what: str, text: str, example: str) -> tuple[str, str]:
    """Read `NAME=VALUE`.

    Raises:
      ExportError: names the option, and an example of what it takes.
    """
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ExportError(f"{what}: expected {example}, got {text!r}")
    return name, value


def expect_declared(flag: str, name: str, declared: Mapping[str, Any], kind: str) -> None:
    """Refuse a name that a flag has, where none such is declared.

    Args:
      flag: that has it, such as `--truncate`.
      name: of a raw input, as the flag has it.
      declared: the raw inputs of this kind, by name.
      kind: text or image, which a flag of that name declares.

    Raises:
      ExportError: names the flag and what is declared, and the nearest of these.
    """
    if name in declared:
        return
    one = f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
    known = f"{one} of {', '.join(declared)}" if declared else f"{one} that --{kind} declares"
    raise ExportError(f"{flag}: expected {known}, got {name!r}{nearest(name, declared)}")


def _range(what: str, name: str, value: Any) -> dict[str, Any]:
    """Read `LOW:HIGH`, or both as a pair; HIGH can be a bucketed axis."""
    if isinstance(value, str):
        match = _RANGE.fullmatch(value)
        if not match:
            raise ExportError(
                f"{what}: expected NAME=LOW:HIGH such as {name}=0:30521, got {f'{name}={value}'!r}"
            )
        return {"minimum": int(match[1]), "maximum": int(match[2]) if match[2] else match[3]}
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ExportError(
            f"{what}: expected LOW:HIGH or a pair such as (0, 30521) for {name!r}, got {value!r}"
        )
    return {"minimum": value[0], "maximum": value[1]}


def _pad(what: str, name: str, value: Any) -> dict[str, Any]:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ExportError(f"{what}: expected NAME=NUMBER, got {f'{name}={value}'!r}") from None
    return {"pad": int(number) if number.is_integer() else number}


def _mask(what: str, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, bool):
        raise ExportError(f"{what}: expected True or False for {name!r}, got {value!r}")
    return {"mask": value}


_READERS: dict[str, Callable[[str, str, Any], dict[str, Any]]] = {
    "range": _range,
    "pad": _pad,
    "mask": _mask,
}
