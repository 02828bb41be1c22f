"""How many instances fit into Vertex AI's payload limits, by encoding."""

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

# https://cloud.google.com/vertex-ai/docs/predictions/choose-endpoint-type
SHARED_BYTES = 1_500_000
DEDICATED_BYTES = 10_000_000

_ENVELOPE = len('{"instances":[]}')

Instance = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Encoding:
    """A way to write instances.

    Attributes:
      name: for people.
      bytes: of one instance.
    """

    name: str
    bytes: int

    def fit(self, limit: int) -> int:
        """Return how many instances fit into a body."""
        return (limit - _ENVELOPE) // self.bytes


def encodings(instances: Sequence[Instance]) -> tuple[Encoding, ...]:
    """Weigh instances, the largest that is among them: as JSON, as b64 inside JSON, as binary.

    Args:
      instances: each of arrays, texts and images by the names of the inputs, images as
        `{"b64": …}`.
    """

    def largest(written: Any) -> int:
        return max(len(written(instance)) for instance in instances)

    return (
        Encoding("JSON numbers", largest(to_json) + 1),
        Encoding("JSON with b64", largest(_to_b64) + 1),
        Encoding("binary (rawPredict)", largest(_to_binary)),
    )


def to_json(instance: Instance) -> bytes:
    """Return an instance as nested lists in JSON."""
    return orjson.dumps(instance, option=orjson.OPT_SERIALIZE_NUMPY)


def _to_b64(instance: Instance) -> bytes:
    return orjson.dumps(
        {name: {"b64": base64.b64encode(_bytes(v)).decode()} for name, v in instance.items()}
    )


def _to_binary(instance: Instance) -> bytes:
    # The length of a text or file stands before it.
    return b"".join(
        bytes(4) + _bytes(v) if isinstance(v, str | dict) else _bytes(v) for v in instance.values()
    )


def _bytes(value: Any) -> bytes:
    """Return the UTF-8 of a text, a file, or the elements of an array."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return value.encode() if isinstance(value, str) else bytes(value.tobytes())


def table(found: Sequence[Encoding]) -> list[tuple[str, ...]]:
    """Return what fits where, as rows for `columns`."""
    header = ("instance", "bytes", "in 1.5 MB, shared endpoint", "in 10 MB, dedicated endpoint")
    rows = [
        (e.name, f"{e.bytes:,}", f"{e.fit(SHARED_BYTES):,}", f"{e.fit(DEDICATED_BYTES):,}")
        for e in found
    ]
    return [header, *rows]
