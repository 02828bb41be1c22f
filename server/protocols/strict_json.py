"""Strict JSON parsing: duplicate keys and oversized bodies are refused."""

import math
from typing import Any

import orjson

from runtime.errors import MalformedRequest
from runtime.preprocessing.image_forms import media_type
from runtime.records.duplicate_keys import duplicate_key
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
    try:
        twice = duplicate_key(bytes(body), value)
    except RecursionError:
        raise MalformedRequest(f"{where}: expected JSON, got objects hundreds deep") from None
    if twice is not None:
        raise MalformedRequest(f"{where}: expected each key once, got {twice[:100]!r} twice")
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
