"""JSON bodies to values, strictly: nothing is lost on the way."""

import json
import math
from typing import Any

import orjson

from runtime.errors import MalformedRequest
from runtime.records.tensors import kind_of
from runtime.signature import Signature
from server.errors import TooLarge

# Up to here even empty arrays are parsed in a tenth of a second.
_COUNTED_BYTES = 1 << 21
# Of a request as a whole, beside its rows.
_FRAME = 1024


def expect_fitting(body: bytes, json_bytes: int | None, signature: Signature, rows: int) -> None:
    """Refuse a large body of more JSON than any request has, before it is parsed.

    16 MiB of empty arrays take a second to parse, and gigabytes.

    Args:
      body: JSON, or begins with it.
      json_bytes: how much of it is JSON; None if all is.
      signature: of the model.
      rows: that a request may have.

    Raises:
      TooLarge: it has more arrays and values than so many rows of the longest inputs.
    """
    if len(body) <= _COUNTED_BYTES:
        return
    most = _FRAME + rows * _marks(signature)
    got = body.count(b"[", 0, json_bytes) + body.count(b",", 0, json_bytes)
    if got > most:
        raise TooLarge(
            f"body: expected at most {most} arrays and commas, as {rows} rows of the longest inputs "
            f"have, got {got}"
        )


def _marks(signature: Signature) -> int:
    """Count the brackets and commas that a row takes, in whatever dialect."""
    longest = {axis.name: axis.sizes[-1] for axis in signature.axes}
    count = 0
    for spec in signature.inputs:
        dims = spec.concrete(1, longest)[1:]
        arrays = sum(math.prod(dims[:depth]) for depth in range(len(dims)))
        count += math.prod(dims) + 2 * arrays + 2
    return count


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
