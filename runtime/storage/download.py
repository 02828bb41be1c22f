"""Download of one bundle's files from a store, with retries; threads share a `Download`."""

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, override

from runtime.entries import MANIFEST_NAME, File
from runtime.manifest import MAX_MANIFEST_BYTES
from runtime.storage.store import FetchError, ObjectChanged, ObjectInfo, Sink, Store, TransientError

log = logging.getLogger(__name__)

# Retries are ours: the client's `Retry` bounds the total time, so that a large file on a slow line fails,
# or one without progress goes on. These bound the tries without progress, of so many bytes each.
_TRIES = 6
_MIN_PROGRESS = 1 << 18
# How often a file with a wrong digest is downloaded from its start.
_STARTS = 2
_LOG_EVERY_S = 5.0
_CHUNK = 1 << 20


class _Stopped(Exception):
    """Another file failed, so this download stops."""


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
        self._pause = pause
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
        self._stream(_Part(buffer, limit, self._count), exactly=False)
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
        except _Stopped:
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
        with open(path, "a+b", buffering=_CHUNK, opener=_no_follow) as f:
            # Another process may fetch the same: it leaves the file, or the part that it got.
            fcntl.flock(f, fcntl.LOCK_EX)
            if self._is_cached(target, file):
                path.unlink(missing_ok=True)
                return
            part = _Part(f, file, self._count)
            part.resume()
            for _ in range(_STARTS):
                self._stream(part, exactly=True)
                if part.digest.hexdigest() == file.sha256:
                    f.flush()
                    path.rename(target)
                    return
                log.warning("%s: not the file that the manifest describes; once more", file.path)
                part.restart()
            raise FetchError(
                f"{self._store}/{file.path}: expected sha256 {file.sha256}, got another file; "
                "was the bundle replaced, or copied in part?"
            )

    def _stream(self, part: "_Part", *, exactly: bool) -> None:
        """Fill a part, retrying as long as there is progress."""
        tries, reached = 0, part.size
        stored = self._stored.pop(part.file, None)
        while True:
            try:
                if stored is None:
                    stored = self._stat(part.file, exactly=exactly)
                if part.size < stored.bytes:
                    self._store.read(part.file.path, stored, part.size, part)
                if part.size == stored.bytes:
                    return
                reason = f"broke off after {part.size} of {stored.bytes} bytes"
            except ObjectChanged:
                stored, reason = None, "was replaced while it was read"
                part.restart()
            except TransientError as error:
                reason = str(error)
            # A store that disconnects after every byte, or is written to all the time, makes no progress.
            if part.size >= reached + _MIN_PROGRESS:
                tries, reached = 0, part.size
            tries += 1
            where = f"{self._store}/{part.file.path}"
            if tries >= _TRIES:
                raise FetchError(f"{where}: gave up after {tries} tries: {reason}")
            log.warning("%s: %s; trying again", where, reason)
            self._pause(min(2.0**tries, 16.0) / 2 * random.uniform(0.5, 1))  # noqa: S311 (no secret)
            if self._stop.is_set():
                raise _Stopped

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
            raise _Stopped
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


class _Part(Sink):
    """A partly downloaded file, and the digest of its bytes."""

    def __init__(self, into: BinaryIO, file: File, count: Callable[[int], None]) -> None:
        self.file = file
        self.size = 0
        self.digest = hashlib.sha256()
        self._into = into
        self._count = count

    def resume(self) -> None:
        """Continue with the bytes that another process left."""
        self._into.seek(0)
        while chunk := self._into.read(_CHUNK):
            self.digest.update(chunk)
            self.size += len(chunk)
        if self.size > self.file.bytes:
            self.restart()

    def restart(self) -> None:
        """Discard all bytes."""
        self._into.seek(0)
        self._into.truncate()
        self.size = 0
        self.digest = hashlib.sha256()

    @override
    def write(self, data: bytes, /) -> int:
        self._count(len(data))
        self.size += len(data)
        if self.size > self.file.bytes:
            raise FetchError(f"{self.file.path}: expected {self.file.bytes} bytes, got more")
        self.digest.update(data)
        return self._into.write(data)


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
