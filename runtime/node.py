"""The manifest's JSON: objects that know their path for reading, and one writer for all entries."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from runtime.errors import InvalidField, ManifestError

T = TypeVar("T")
U = TypeVar("U")

# Characters of a text: messages, logs and pages repeat it.
_LONGEST_TEXT = 4096
_REQUIRED = "required"


def required[V](default: V) -> V:
    """Return a dataclass field that is written even where it has its default.

    Readers of every format require such a key. Other fields with a default are left out then,
    so that a field added later changes no manifest that does not need it.
    """
    return dataclasses.field(default=default, metadata={_REQUIRED: True})


def to_json(value: object) -> Any:
    """Return what the `from_node` of an entry reads: JSON's own types, for any value in a manifest.

    A dataclass becomes an object of its fields in their order, without those that have their
    default, unless they are `required`.
    """
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _REQUIRED in field.metadata or getattr(value, field.name) != field.default
        }
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


class Node:
    """A JSON object that knows its path, so that every complaint names a place.

    Each key must be taken exactly once; `whole` refuses those that were not.

    Attributes:
      where: path of the object.
      version: of the format that it is written in, 0 until it is known. A key that this
        version does not have is not to be taken: it is then unknown, as to an older reader.
    """

    def __init__(self, value: object, where: str = "$", version: int = 0) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"expected object, got {_type_name(value)}", where)
        self._left = dict(cast("dict[str, object]", value))
        self.where = where
        self.version = version

    def take(self, key: str, kind: type[T]) -> T:
        """Take a required value of exactly this type (bool is not an int here)."""
        if key not in self._left:
            raise ManifestError(f"missing {key!r}", self.where)
        return typed(self._left.pop(key), kind, f"{self.where}.{key}")

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Take a value that may be absent or null."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return self.take(key, kind)

    def either(self, key: str, one: type[T], other: type[U]) -> T | U | None:
        """Take a value of one of two types, that may be absent or null."""
        return self.optional(key, other if type(self._left.get(key)) is other else one)

    def number(self, key: str) -> int | float:
        """Take a number, 0 if absent or null; an int stays exact."""
        value = self._left.pop(key, None)
        if value is None:
            return 0
        return value if type(value) is int else typed(value, float, f"{self.where}.{key}")

    def choice(self, key: str, options: Iterable[str]) -> str:
        """Take a string that must be one of `options`."""
        return self.check(key, self.take(key, str), tuple(options))

    def check(self, key: str, value: str, options: tuple[str, ...]) -> str:
        """Refuse a string that is none of `options`."""
        if value not in options:
            expected = " or ".join(map(repr, options))
            raise ManifestError(f"expected {expected}, got {value!r}", f"{self.where}.{key}")
        return value

    def items(self, key: str, kind: type[T]) -> tuple[T, ...]:
        """Take an array of plain values."""
        values = self.take(key, list)
        return tuple(typed(v, kind, f"{self.where}.{key}[{i}]") for i, v in enumerate(values))

    def each(self, key: str, read: "Callable[[Node], T]") -> tuple[T, ...]:
        """Take an array of objects and read each whole."""
        values = self.take(key, list)
        return tuple(
            Node(v, f"{self.where}.{key}[{i}]", self.version).whole(read)
            for i, v in enumerate(values)
        )

    def mapping(self, key: str, read: "Callable[[Node], T]") -> dict[str, T]:
        """Take an object whose keys are names and whose values are objects."""
        values = self.take(key, dict)
        return {
            name: Node(v, f"{self.where}.{key}.{name}", self.version).whole(read)
            for name, v in values.items()
        }

    def child(self, key: str, read: "Callable[[Node], T]") -> T:
        """Take an object and read it whole."""
        return Node(self.take(key, dict), f"{self.where}.{key}", self.version).whole(read)

    def has(self, key: str) -> bool:
        """Whether a key is there and not null; a null is taken."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
        return key in self._left

    def names(self) -> tuple[str, ...]:
        """Return the keys that were not taken yet."""
        return tuple(self._left)

    def whole(self, read: "Callable[[Node], T]") -> T:
        """Read this object, and refuse keys that were not taken and values that no bundle may have."""
        try:
            result = read(self)
        except InvalidField as error:
            steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.path)
            raise ManifestError(str(error), self.where + "".join(steps)) from None
        if self._left:
            unknown = ", ".join(map(repr, sorted(self._left)))
            raise ManifestError(f"unknown key {unknown}", self.where)
        return result


def _type_name(value: object) -> str:
    """Return the name of a value's JSON type."""
    names = {dict: "object", list: "array", str: "string", bool: "bool", int: "int"}
    names |= {float: "float", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def typed[T](value: object, kind: type[T], where: str) -> T:
    """Return the value if it has exactly this type; an int passes for a finite float."""
    if kind is float and type(value) in (int, float):
        value = _finite(cast("float", value), where)
    if type(value) is not kind:
        names = {dict: "object", list: "array", str: "string"}
        expected = names.get(cast("Any", kind), kind.__name__)
        raise ManifestError(f"expected {expected}, got {_type_name(value)}", where)
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ManifestError(
            f"expected at most {_LONGEST_TEXT:,} characters, got {len(value):,}", where
        )
    return value


def _finite(value: float, where: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ManifestError(f"expected a finite number, got {number}", where)
    return number
