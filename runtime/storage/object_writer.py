"""Objects written to a folder of a bucket, each complete or absent, with retries."""

import base64
import threading
import time
from collections.abc import Callable
from pathlib import Path

from runtime.storage.gcs import CloudStore, crc32c
from runtime.storage.object_copy import ObjectCopy
from runtime.storage.store import ObjectChanged
from runtime.storage.transfer import Transfer
from runtime.storage.uri import CloudFolder


class ObjectWriter:
    """Reads and writes small folders of a bucket.

    Its methods raise FetchError where the store refuses, or stays silent.

    Args:
      folder: of the bucket.
      pause: waits so many seconds before a retry.
    """

    def __init__(self, folder: CloudFolder, pause: Callable[[float], object] = time.sleep) -> None:
        self._store = CloudStore(folder)
        self._copy = ObjectCopy(self._store, pause)
        self._transfer = Transfer(self._store, pause, threading.Event())

    def names(self) -> list[str]:
        """Return the names of the objects in the folder."""
        return sorted(self._copy.below(""))

    def read(self, name: str, target: Path) -> tuple[bytes, int] | None:
        """Return an object's content and generation, by way of a local file; None if there is none."""
        found = self._copy.find(name)
        if found is None:
            return None
        self._copy.copy({name: (found, target)})
        data = target.read_bytes()
        target.unlink()
        return data, found.generation

    def write(self, name: str, source: Path, generation: int | None = None) -> int:
        """Write an object, whose checksum the store compares.

        Args:
          name: of the object.
          source: the file to write.
          generation: that the object there has to have, 0 for none; None for any.

        Returns:
          The generation of what was written.

        Raises:
          ObjectChanged: another one is there.
        """
        where = f"{self._store}/{name}"
        try:
            return self._transfer.retry(where, lambda: self._store.write(name, source, generation))
        except ObjectChanged:
            # By a try of our own, perhaps, whose response did not arrive.
            found = self._copy.find(name)
            digest = crc32c()
            digest.update(source.read_bytes())
            if found is None or base64.b64decode(found.crc32c) != digest.digest():
                raise
            return found.generation

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._transfer.retry(f"{self._store}/{name}", lambda: self._store.remove(name))
