"""Strict JSON parsing: duplicate keys and oversized bodies are refused."""

import json
import math
from typing import Any

import orjson

from runtime.errors import MalformedRequest
from runtime.preprocessing.image_forms import media_type
from runtime.records.tensors import kind_of
from runtime.signature import Signature
from server.errors import TooLarge

# Smaller bodies are parsed in a tenth of a second even if they are all empty arrays.
_COUNTED_BYTES = 1 << 21
# Brackets and commas of a request outside of its rows.
_FRAME = 1024


def expect_fitting(
    body: bytes, json_length: int | None, signature: Signature, rows: int, raw_marks: int = 0
) -> None:
    """Raise TooLarge for a body with more JSON values than a request can have, before parsing it.

    16 MiB of empty arrays take a second to parse, and gigabytes of memory.

    Args:
      body: JSON, perhaps followed by binary tensors.
      json_length: bytes of JSON; None if all of the body is JSON.
      signature: of the model.
      rows: limit of rows in a request.
      raw_marks: limit of those in the strings of a row's raw inputs: texts may have as many as bytes.

    Raises:
      TooLarge: more arrays and values than that many rows of the longest inputs have.
    """
    if len(body) <= _COUNTED_BYTES:
        return
    limit = _FRAME + rows * (_marks(signature) + raw_marks)
    got = body.count(b"[", 0, json_length) + body.count(b",", 0, json_length)
    if got > limit:
        raise TooLarge(
            f"body: expected at most {limit} arrays and commas, as {rows} rows of the longest inputs "
            f"have, got {got}"
        )


def _marks(signature: Signature) -> int:
    """Return how many brackets and commas a row has at most, in any protocol."""
    longest = {axis.name: axis.sizes[-1] for axis in signature.axes}
    count = 0
    for spec in signature.inputs:
        dims = spec.concrete(1, longest)[1:]
        arrays = sum(math.prod(dims[:depth]) for depth in range(len(dims)))
        count += math.prod(dims) + 2 * arrays + 2
    return count


def parse_object(body: bytes | memoryview, where: str = "body") -> dict[str, Any]:
    """Return a JSON object.

    Raises:
      MalformedRequest: not JSON, not an object, or with a duplicate key.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        got = _other_than_json(bytes(body)) or str(error)
        raise MalformedRequest(f"{where}: expected JSON, got {got}") from None
    if type(value) is not dict:
        raise MalformedRequest(f"{where}: expected an object, got {kind_of(value)}")
    # Every pair has a colon: with as many keys as colons there was no duplicate. Colons in strings
    # only cause the slower check.
    try:
        if bytes(body).count(b":") != _keys(value):
            _refuse_duplicates(body, where)
    except RecursionError:
        raise MalformedRequest(f"{where}: expected JSON, got objects hundreds deep") from None
    return value


def _other_than_json(body: bytes) -> str:
    """Return what a body is, where this says more than the place at which its JSON ends; else nothing."""
    media = media_type(body)
    if not body:
        return "no bytes"
    if media is not None:
        return f"an image; its content-type is {media}"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"no UTF-8: the byte {body[error.start]:#04x} at {error.start}"
    return ""


def _keys(value: dict[str, Any]) -> int:
    """Return the number of pairs in an object and in the objects directly in its values."""
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
