"""Download of one bundle's files from a store, with retries; threads share a `Download`."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from runtime.entries import MANIFEST_NAME, File
from runtime.manifest import MAX_MANIFEST_BYTES
from runtime.storage.store import FetchError, ObjectInfo, Store, TransientError
from runtime.storage.transfer import CHUNK, Part, Stopped, Transfer

log = logging.getLogger(__name__)

_LOG_EVERY_S = 5.0


class Download:
    """The state that the threads of one bundle's download share.

    Args:
      store: has the bundle.
      pause: waits so many seconds before a retry.
      stop: set once a file has failed or the download is not needed any more.
    """

    def __init__(
        self, store: Store, pause: Callable[[float], object], stop: threading.Event
    ) -> None:
        self._store = store
        self._transfer = Transfer(store, pause, stop)
        self._stop = stop
        self._lock = threading.Lock()
        self._total = self._cached = self._fetched = self._missing = 0
        self._began = self._logged = time.monotonic()
        self._failed: Exception | None = None
        self._stored: dict[File, ObjectInfo] = {}

    def read_manifest(self) -> bytes:
        """Return manifest.json, whose digest is not known yet."""
        limit = File(path=MANIFEST_NAME, bytes=MAX_MANIFEST_BYTES, sha256="")
        buffer = io.BytesIO()
        part = Part(buffer, MANIFEST_NAME, limit.bytes, hashlib.sha256, self._count)
        self._transfer.fill(part, functools.partial(self._stat, limit, exactly=False))
        self._fetched = 0
        return buffer.getvalue()

    def begin(self, files: list[File]) -> None:
        """Log and count the files that will be fetched."""
        self._total = sum(file.bytes for file in files)
        self._missing = len(files)
        log.info("fetching %s: %d files, %s", self._store, len(files), _megabytes(self._total))

    def stat(self, file: File, directory: Path) -> None:
        """Check a file's size in the store before anything is fetched, unless the directory has it.

        Raises:
          FetchError: the object has another size, or is not there.
        """
        if not (directory / file.path).exists():
            with contextlib.suppress(TransientError):  # fetching it retries
                self._stored[file] = self._stat(file, exactly=True)

    def check(self) -> None:
        """Raise the error of the first file that failed, if one has."""
        if self._failed is not None:
            raise self._failed

    def fetch_file(self, file: File, directory: Path) -> None:
        """Download one file into the directory, unless it is there; `check` raises its error."""
        target = directory / file.path
        try:
            if not self._is_cached(target, file):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download(target, file)
            self._count_file()
        except Stopped:
            pass
        except OSError as error:
            self._fail(unwritable(target, error))
        except Exception as error:  # noqa: BLE001 (`check` raises it where the file is opened)
            self._fail(error)

    def _count_file(self) -> None:
        """Count a file as complete, and log when all are."""
        with self._lock:
            self._missing -= 1
            if self._missing:
                return
        seconds = time.monotonic() - self._began
        fetched, cached = _megabytes(self._fetched), _megabytes(self._cached)
        log.info("fetched %s in %.1f s; %s were here already", fetched, seconds, cached)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._failed = self._failed or error
        self._stop.set()

    def _is_cached(self, target: Path, file: File) -> bool:
        """Whether the file is there with the right digest; one with another digest is deleted."""
        if not target.is_symlink():  # a bundle has none
            if not target.exists():
                return False
            with target.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            if digest == file.sha256:
                with self._lock:
                    self._cached += file.bytes
                return True
        log.warning("%s: not what was kept; fetching it again", target)
        target.unlink(missing_ok=True)
        return False

    def _download(self, target: Path, file: File) -> None:
        path = part_of(target)
        with open(path, "a+b", buffering=CHUNK, opener=_no_follow) as f:
            # Another process may fetch the same: it leaves the file, or the part that it got.
            fcntl.flock(f, fcntl.LOCK_EX)
            if self._is_cached(target, file):
                path.unlink(missing_ok=True)
                return
            part = Part(f, file.path, file.bytes, hashlib.sha256, self._count)
            part.resume()
            expected = bytes.fromhex(file.sha256)
            stat = functools.partial(self._stat, file, exactly=True)
            if not self._transfer.fill_with(part, expected, stat, self._stored.pop(file, None)):
                raise FetchError(
                    f"{self._store}/{file.path}: expected sha256 {file.sha256}, got another file; "
                    "was the bundle replaced, or copied in part?"
                )
            f.flush()
            path.rename(target)

    def _stat(self, file: File, *, exactly: bool) -> ObjectInfo:
        stored = self._store.stat(file.path)
        if exactly and stored.bytes != file.bytes:
            raise FetchError(
                f"{self._store}/{file.path}: expected {file.bytes} bytes, got {stored.bytes}; "
                "was the bundle replaced, or copied in part?"
            )
        if stored.bytes > file.bytes:
            raise FetchError(
                f"{self._store}/{file.path}: expected at most {file.bytes} bytes, got {stored.bytes}"
            )
        return stored

    def _count(self, more: int) -> None:
        if self._stop.is_set():
            raise Stopped
        with self._lock:
            self._fetched += more
            now = time.monotonic()
            if now - self._logged < _LOG_EVERY_S or not self._total:
                return
            self._logged = now
            done = self._fetched + self._cached
        log.info("fetched %s of %s", _megabytes(done), _megabytes(self._total))


def _no_follow(path: str, flags: int) -> int:
    """Open a file without following a symbolic link in its place."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def part_of(target: Path) -> Path:
    """Return the path of a file while it is incomplete."""
    return target.with_name(target.name + ".part")


def unwritable(where: Path, error: OSError) -> FetchError:
    """Return the error for a path that cannot be written, with advice."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    wanted = "--cache-dir with room for the bundle" if full else "a --cache-dir that can be written"
    return FetchError(f"{where}: {error.strerror}; pass {wanted}")
