"""JSON bodies to values, strictly: nothing is lost on the way."""

import json
from typing import Any

import orjson

from server.errors import MalformedRequest
from server.typed import kind_of


def parse_object(body: bytes | memoryview, where: str = "body") -> dict[str, Any]:
    """Read a JSON object.

    Raises:
      MalformedRequest: not JSON, not an object, or a key twice in one object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"{where}: expected JSON, got {error}") from None
    if type(value) is not dict:
        raise MalformedRequest(f"{where}: expected an object, got {kind_of(value)}")
    # Every pair has a colon: with as many keys as colons none was lost. Colons in strings
    # only cost the slower look.
    try:
        if bytes(body).count(b":") != _keys(value):
            _refuse_duplicates(body, where)
    except RecursionError:
        raise MalformedRequest(f"{where}: expected JSON, got objects hundreds deep") from None
    return value


def _keys(value: dict[str, Any]) -> int:
    """Count the pairs of an object and of the objects in it, as far as they lie open."""
    count = len(value)
    for inner in value.values():
        if type(inner) is dict:
            count += _keys(inner)
        elif type(inner) is list and inner and type(inner[0]) is dict:
            count += sum(_keys(element) for element in inner if type(element) is dict)
    return count


def _refuse_duplicates(body: bytes | memoryview, where: str) -> None:
    def once(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedRequest(f"{where}: expected each key once, got {key[:100]!r} twice")
            seen.add(key)

    json.loads(bytes(body), object_pairs_hook=once, parse_int=len, parse_float=len)
