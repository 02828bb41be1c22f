"""The object store interface that `download` uses, and its errors."""

from typing import NamedTuple, Protocol

from runtime.errors import BundleError


class FetchError(BundleError):
    """What is wanted cannot be fetched; a retry would fail as well."""


class TransientError(Exception):
    """The store did not answer, or the connection broke; a retry may succeed."""


class ObjectChanged(Exception):
    """The object that was being read is no longer there."""


class ObjectInfo(NamedTuple):
    """An object in a store.

    Attributes:
      bytes: its size, as it is stored.
      generation: changes when it is replaced.
      crc32c: of its bytes as they are stored, in base64; "" where the store does not say.
      encoding: `gzip` where it was uploaded to be unpacked on the way.
    """

    bytes: int
    generation: int
    crc32c: str = ""
    encoding: str = ""


class Sink(Protocol):
    """Receives the bytes of an object."""

    def write(self, data: bytes, /) -> int:
        """Write the next bytes."""


class Store(Protocol):
    """Has a bundle; its `str` is the bundle's name in messages. Threads may share one.

    Its methods raise TransientError and FetchError; `read` also ObjectChanged.
    """

    def stat(self, path: str) -> ObjectInfo:
        """Return size and generation of the object at a path below the bundle."""

    def read(self, path: str, stored: ObjectInfo, start: int, sink: Sink) -> None:
        """Stream exactly this generation of an object to a sink, from byte `start` on."""
