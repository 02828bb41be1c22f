"""Where a bundle is fetched from: what `download` asks of a store, and what it may be told."""

from typing import NamedTuple, Protocol

from runtime.errors import BundleError


class FetchError(BundleError):
    """The bundle cannot be brought here; another try at once would end the same."""


class TransientError(Exception):
    """The store did not answer, or broke off; another try may go better."""


class ObjectChanged(Exception):
    """The object that was being read is no longer there."""


class ObjectInfo(NamedTuple):
    """An object in a store: its size, and the generation that tells it from its successors."""

    bytes: int
    generation: int


class Sink(Protocol):
    """Takes the bytes of an object."""

    def write(self, data: bytes, /) -> int:
        """Take the next bytes."""


class Store(Protocol):
    """Where a bundle is; as text, what messages call it. Threads may share one.

    Its methods raise TransientError and FetchError; `read` also ObjectChanged.
    """

    def stat(self, path: str) -> ObjectInfo:
        """Say what is stored under a path below the bundle now."""

    def read(self, path: str, stored: ObjectInfo, start: int, sink: Sink) -> None:
        """Stream just this generation of an object, from a byte on."""
