"""One object of a store, streamed to a file with retries; for `download` and `object_copy`."""

import logging
import random
import threading
from collections.abc import Callable
from typing import BinaryIO, Protocol, override

from runtime.storage.store import FetchError, ObjectChanged, ObjectInfo, Sink, Store, TransientError

log = logging.getLogger(__name__)
# Of our own: the generator of `random` is the caller's, who may have seeded it.
_jitter = random.Random()  # noqa: S311 (no secret)

CHUNK = 1 << 20
# Retries are ours: the client's `Retry` bounds the total time, so that a large file on a slow line fails,
# or one without progress goes on. These bound the tries without progress, of so many bytes each.
TRIES = 6
MIN_PROGRESS = 1 << 18
# How often an object with a wrong digest is downloaded from its start.
_STARTS = 2


class Stopped(Exception):
    """Another object failed, or nothing is needed any more, so this transfer stops."""


class Digest(Protocol):
    """A checksum of bytes, as hashlib's are."""

    def update(self, data: bytes, /) -> None:
        """Add the next bytes."""

    def digest(self) -> bytes:
        """Return the checksum of all bytes so far."""


class Part(Sink):
    """A partly downloaded object, and the digest of its bytes.

    Args:
      into: where the bytes go, opened for reading as well where `resume` is called.
      path: of the object, below the store's folder.
      limit: bytes that it may have.
      new_digest: returns a digest of no bytes.
      received: called with the number of bytes that have just arrived.

    Attributes:
      path: likewise.
      size: bytes so far.
    """

    def __init__(
        self,
        into: BinaryIO,
        path: str,
        limit: int,
        new_digest: Callable[[], Digest],
        received: Callable[[int], object],
    ) -> None:
        self.path = path
        self.size = 0
        self._into = into
        self._limit = limit
        self._new_digest = new_digest
        self._digest = new_digest()
        self._received = received

    def digest(self) -> bytes:
        """Return the digest of the bytes so far."""
        return self._digest.digest()

    def resume(self) -> None:
        """Continue with the bytes that the file has."""
        self._into.seek(0)
        while chunk := self._into.read(CHUNK):
            self._digest.update(chunk)
            self.size += len(chunk)
        if self.size > self._limit:
            self.restart()

    def restart(self) -> None:
        """Discard all bytes."""
        self._into.seek(0)
        self._into.truncate()
        self.size = 0
        self._digest = self._new_digest()

    @override
    def write(self, data: bytes, /) -> int:
        self._received(len(data))
        self.size += len(data)
        if self.size > self._limit:
            raise FetchError(f"{self.path}: expected {self._limit} bytes, got more")
        self._digest.update(data)
        return self._into.write(data)


class Transfer:
    """Streams objects of one store; threads may share it.

    Args:
      store: has the objects.
      pause: waits so many seconds before a retry.
      stop: set once no more is wanted.
    """

    def __init__(
        self, store: Store, pause: Callable[[float], object], stop: threading.Event
    ) -> None:
        self._store = store
        self._pause = pause
        self._stop = stop

    def fill(
        self, part: Part, stat: Callable[[], ObjectInfo], stored: ObjectInfo | None = None
    ) -> None:
        """Fill a part from where it is, retrying as long as there is progress.

        Args:
          part: of the object.
          stat: returns the object as it is now, which is asked again where it was replaced.
          stored: the object, where that is known.

        Raises:
          FetchError: it cannot be read, or there is no progress.
          Stopped: no more is wanted.
        """

        def attempt() -> None:
            nonlocal stored
            try:
                if stored is None:
                    stored = stat()
                if part.size < stored.bytes:
                    self._store.read(part.path, stored, part.size, part)
            except ObjectChanged:
                stored = None
                part.restart()
                raise TransientError("was replaced while it was read") from None
            if part.size != stored.bytes:
                raise TransientError(f"broke off after {part.size} of {stored.bytes} bytes")

        self.retry(f"{self._store}/{part.path}", attempt, lambda: part.size)

    def fill_with(
        self,
        part: Part,
        digest: bytes,
        stat: Callable[[], ObjectInfo],
        stored: ObjectInfo | None = None,
    ) -> bool:
        """Fill a part until its bytes have a digest; see `fill`.

        Returns:
          Whether they have it, at the second time if not at the first.
        """
        for _ in range(_STARTS):
            self.fill(part, stat, stored)
            if part.digest() == digest:
                return True
            log.warning("%s: not the expected digest; reading it again", part.path)
            part.restart()
        return False

    def retry[T](
        self, where: str, attempt: Callable[[], T], size: Callable[[], int] = lambda: 0
    ) -> T:
        """Call `attempt` until it raises no TransientError, and return its result.

        Args:
          where: the object, for messages.
          attempt: one try.
          size: returns the bytes so far.

        Raises:
          FetchError: several tries made no progress.
          Stopped: no more is wanted.
        """
        tries, reached = 0, size()
        while True:
            try:
                return attempt()
            except TransientError as error:
                reason = str(error)
            # A store that disconnects after every byte, or is written to all the time, makes no progress.
            if size() >= reached + MIN_PROGRESS:
                tries, reached = 0, size()
            tries += 1
            if tries >= TRIES:
                raise FetchError(f"{where}: gave up after {tries} tries: {reason}")
            log.warning("%s: %s; trying again", where, reason)
            self._pause(min(2.0**tries, 16.0) / 2 * _jitter.uniform(0.5, 1))
            if self._stop.is_set():
                raise Stopped
