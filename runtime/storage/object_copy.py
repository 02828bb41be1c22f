"""Copies of objects that no manifest describes, each checked against the CRC32C that its store has.

A folder is copied as it was when it was listed: an object that is replaced meanwhile is refused,
since the others may then be of another upload.
"""

import base64
import concurrent.futures
import functools
import gzip
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.storage.gcs import CloudStore, crc32c
from runtime.storage.store import FetchError, ObjectInfo
from runtime.storage.transfer import Part, Stopped, Transfer

THREADS = 8


class ObjectCopy:
    """Finds and copies objects of a store, with retries.

    Its methods raise FetchError where the store refuses, or stays silent.

    Args:
      store: has the objects.
      pause: waits so many seconds before a retry.
    """

    def __init__(self, store: CloudStore, pause: Callable[[float], object] = time.sleep) -> None:
        self._store = store
        self._stop = threading.Event()
        self._transfer = Transfer(store, pause, self._stop)

    def find(self, path: str) -> ObjectInfo | None:
        """Return the object of a path, or None where there is none."""
        return self._transfer.retry(self._where(path), lambda: self._store.find(path))

    def below(self, path: str) -> dict[str, ObjectInfo]:
        """Return the objects below a path, by their names from there on."""
        return self._transfer.retry(self._where(path), lambda: self._store.below(path))

    def names(self) -> list[str]:
        """Return names in the store's folder itself, at most a thousand."""
        return self._transfer.retry(str(self._store), self._store.names)

    def copy(self, objects: Mapping[str, tuple[ObjectInfo, Path]]) -> None:
        """Write objects to files, several at once.

        Args:
          objects: path to the object that was found there, and the file to write, whose directory is
            made.

        Raises:
          FetchError: one cannot be read, was replaced, or has other bytes than its CRC32C says.
          OSError: a file cannot be written.
        """
        with concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="copy") as pool:
            running = [pool.submit(self._copy, path, *found) for path, found in objects.items()]
            try:
                concurrent.futures.wait(running)
            except BaseException:  # interrupted: the pool is left once its threads have ended
                self._stop.set()
                raise
        for done in running:
            error = done.exception()
            if error is not None and not isinstance(error, Stopped):
                raise error

    def _copy(self, path: str, stored: ObjectInfo, target: Path) -> None:
        try:
            self._expect_wanted(0)
            self._write(path, stored, target)
        except BaseException:
            self._stop.set()
            raise

    def _write(self, path: str, stored: ObjectInfo, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w+b") as f:
            part = Part(f, path, stored.bytes, crc32c, self._expect_wanted)
            expected = base64.b64decode(stored.crc32c)
            if not expected:
                raise FetchError(f"{self._where(path)}: expected a CRC32C of the object, got none")
            replaced = functools.partial(self._refuse_replaced, path)
            if not self._transfer.fill_with(part, expected, replaced, stored):
                raise FetchError(
                    f"{self._where(path)}: expected CRC32C {expected.hex()}, got other bytes, twice"
                )
        if stored.encoding == "gzip":  # uploaded to be unpacked on the way
            packed = target.rename(target.with_name(target.name + ".gz"))
            with gzip.open(packed) as source, target.open("wb") as f:
                shutil.copyfileobj(source, f)
            packed.unlink()

    def _expect_wanted(self, _: int) -> None:
        if self._stop.is_set():
            raise Stopped

    def _refuse_replaced(self, path: str) -> ObjectInfo:
        raise FetchError(
            f"{self._where(path)}: was replaced while it was read; is something being written there?"
        )

    def _where(self, path: str) -> str:
        return f"{self._store}/{path}".rstrip("/")
