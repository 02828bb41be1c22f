"""A bundle on its way from a store to a directory, used while it arrives.

1. the manifest is read
2. the files it names are fetched, several at a time: programs first, since they are small and
   compiling them takes long, then params, goldens, and what is only kept
3. a file's digest is taken while it streams into `NAME.part`; it gets its name when it is right
4. manifest.json is written when all are there

What a store lists is never asked for: an object that the manifest does not name is not
touched, and names that lead out of the directory are no manifest's.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import logging
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, override

from runtime.bundle import Bundle, open_bundle
from runtime.entries import MANIFEST_NAME, File
from runtime.errors import BundleError
from runtime.manifest import MAX_MANIFEST_BYTES, Manifest
from server.artifacts import locate

log = logging.getLogger(__name__)

THREADS = 8
# How often a file is tried without a byte of it arriving, and how often from its beginning.
_TRIES = 6
_STARTS = 2
_LOG_EVERY_S = 5.0
_CHUNK = 1 << 20


class NotFetched(BundleError):
    """The bundle cannot be brought here; another try at once would end the same."""


class Lost(Exception):
    """The store did not answer, or broke off; another try may go better."""


class Replaced(Exception):
    """The object that was being read is no longer there."""


class _Stopped(Exception):
    """Another file failed, so that this one is of no use."""


class Stored(NamedTuple):
    """An object in a store: its size, and the generation that tells it from its successors."""

    bytes: int
    generation: int


class Sink(Protocol):
    """Takes the bytes of an object."""

    def write(self, data: bytes, /) -> int:
        """Take the next bytes."""


class Store(Protocol):
    """Where a bundle is fetched from; threads may share one.

    Its methods raise Lost and NotFetched; `read` also Replaced.
    """

    def look(self, path: str) -> Stored:
        """Say what is stored under a path below the bundle now."""

    def read(self, path: str, stored: Stored, start: int, sink: Sink) -> None:
        """Stream just this generation of an object, from a byte on."""


@contextlib.contextmanager
def fetching(
    store: Store, cache: Path | None, pause: Callable[[float], object] | None = None
) -> Iterator[Bundle]:
    """Fetch a bundle; it can be used at once, and each file is waited for when it is opened.

    Args:
      store: where it is; as text, what messages call it.
      cache: keeps the bundle, below its digest, for the next start. Without one the files are
        gone when the context ends: what was loaded lives on in memory.
      pause: waits so many seconds before another try.

    Raises:
      BundleError: it is not there, or not whole; also where a file is waited for.
    """
    stop = threading.Event()
    fetch = _Fetch(store, pause or stop.wait, stop)
    data = fetch.read_manifest()
    manifest = Manifest.from_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    with _directory(cache, digest) as directory:
        pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        try:
            files = _in_order(manifest)
            fetch.begin(files)
            coming = {file: pool.submit(fetch.bring, file, directory) for file in files}

            def arrived(file: File) -> None:
                concurrent.futures.wait([coming[file]])
                fetch.check()

            yield Bundle(directory, manifest, digest, arrived)
            concurrent.futures.wait(coming.values())
            fetch.check()
            fetch.end()
            _write(directory / MANIFEST_NAME, data)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def bundle_at(name: str, cache_dir: str) -> Iterator[Bundle]:
    """Open the bundle that `--bundle` names, wherever it is; see `artifacts` for the names.

    Raises:
      BundleError: it is not there, or not whole.
    """
    place = locate(name)
    if isinstance(place, Path):
        yield open_bundle(place)
        return
    from server.gcs import CloudStore

    with fetching(CloudStore(place), Path(cache_dir) if cache_dir else None) as bundle:
        yield bundle


def _in_order(manifest: Manifest) -> list[File]:
    programs = [program.exported for program in manifest.programs]
    return list(dict.fromkeys([*programs, *manifest.params.files, *manifest.files]))


@contextlib.contextmanager
def _directory(cache: Path | None, digest: str) -> Iterator[Path]:
    """Give the directory for the bundle of this digest."""
    where = cache or Path(tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        try:
            if cache is None:
                made = tempfile.TemporaryDirectory(prefix="hloserve-", ignore_cleanup_errors=True)
                directory = Path(stack.enter_context(made))
            else:
                directory = cache / digest
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(where, error) from None
        yield directory


def _unwritable(where: Path, error: OSError) -> NotFetched:
    return NotFetched(f"{where}: {error.strerror}; pass --cache-dir with room for the bundle")


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")  # another process may write it too
    try:
        part.write_bytes(data)
        part.rename(path)
    except OSError as error:
        raise _unwritable(path, error) from None


class _Fetch:
    """What the threads of one fetch share."""

    def __init__(
        self, store: Store, pause: Callable[[float], object], stop: threading.Event
    ) -> None:
        self._store = store
        self._pause = pause
        self._stop = stop
        self._lock = threading.Lock()
        self._total = self._here = self._fetched = 0
        self._began = self._logged = time.monotonic()
        self._failed: Exception | None = None

    def read_manifest(self) -> bytes:
        """Read manifest.json, which no digest is known of yet."""
        with tempfile.TemporaryFile() as file:
            limit = File(path=MANIFEST_NAME, bytes=MAX_MANIFEST_BYTES, sha256="")
            part = _Part(file, limit, self._count)
            self._stream(part, exactly=False)
            file.seek(0)
            data = file.read()
        self._fetched = 0
        return data

    def begin(self, files: list[File]) -> None:
        """Say what is coming."""
        self._total = sum(file.bytes for file in files)
        log.info("fetching %s: %d files, %s", self._store, len(files), _megabytes(self._total))

    def end(self) -> None:
        """Say that all is here."""
        seconds = time.monotonic() - self._began
        fetched, here = _megabytes(self._fetched), _megabytes(self._here)
        log.info("fetched %s in %.1f s; %s were here already", fetched, seconds, here)

    def check(self) -> None:
        """Raise what a file failed with, if one has: it spoils them all."""
        if self._failed is not None:
            raise self._failed

    def bring(self, file: File, directory: Path) -> None:
        """Bring one file into the directory, unless it is there."""
        target = directory / file.path
        try:
            if not self._kept(target, file):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download(target, file)
        except _Stopped:
            pass
        except OSError as error:
            self._fail(_unwritable(target, error))
        except Exception as error:  # noqa: BLE001 (it is raised where the file is waited for)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._failed = self._failed or error
        self._stop.set()

    def _kept(self, target: Path, file: File) -> bool:
        """Say whether the file is there, as it should be; one that is not goes away."""
        if not target.exists():
            return False
        with target.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        if digest != file.sha256:
            log.warning("%s: not what was kept; fetching it again", target)
            target.unlink(missing_ok=True)
            return False
        with self._lock:
            self._here += file.bytes
        return True

    def _download(self, target: Path, file: File) -> None:
        path = target.with_name(target.name + ".part")
        with path.open("a+b", buffering=_CHUNK) as f:
            # Another process may be fetching the same; it leaves the file, or where it got to.
            fcntl.flock(f, fcntl.LOCK_EX)
            if self._kept(target, file):
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
            raise NotFetched(
                f"{self._store}/{file.path}: expected sha256 {file.sha256}, got another file; "
                "was the bundle replaced, or copied in part?"
            )

    def _stream(self, part: "_Part", *, exactly: bool) -> None:
        """Fill a part, in as many tries as make headway."""
        tries = 0
        stored: Stored | None = None
        while True:
            before = part.size
            try:
                if stored is None:
                    stored = self._look(part.file, exactly=exactly)
                if part.size < stored.bytes:
                    self._store.read(part.file.path, stored, part.size, part)
                if part.size == stored.bytes:
                    return
                reason = f"broke off after {part.size} of {stored.bytes} bytes"
            except Replaced:
                stored, reason = None, "was replaced while it was read"
                part.restart()
                before = 0
            except Lost as error:
                reason = str(error)
            tries = 1 if part.size > before else tries + 1
            where = f"{self._store}/{part.file.path}"
            if tries >= _TRIES:
                raise NotFetched(f"{where}: gave up after {tries} tries: {reason}")
            log.warning("%s: %s; trying again", where, reason)
            self._pause(min(2.0**tries, 16.0) / 2 * random.uniform(0.5, 1))  # noqa: S311 (no secret)
            if self._stop.is_set():
                raise _Stopped

    def _look(self, file: File, *, exactly: bool) -> Stored:
        stored = self._store.look(file.path)
        if exactly and stored.bytes != file.bytes:
            raise NotFetched(
                f"{self._store}/{file.path}: expected {file.bytes} bytes, got {stored.bytes}; "
                "was the bundle replaced, or copied in part?"
            )
        if stored.bytes > file.bytes:
            raise NotFetched(
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
            here = self._fetched + self._here
        log.info("fetched %s of %s", _megabytes(here), _megabytes(self._total))


class _Part(Sink):
    """A file that is being filled, and the digest of what it holds."""

    def __init__(self, into: BinaryIO, file: File, count: Callable[[int], None]) -> None:
        self.file = file
        self.size = 0
        self.digest = hashlib.sha256()
        self._into = into
        self._count = count

    def resume(self) -> None:
        """Take up what another process left."""
        self._into.seek(0)
        while chunk := self._into.read(_CHUNK):
            self.digest.update(chunk)
            self.size += len(chunk)
        if self.size > self.file.bytes:
            self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._into.seek(0)
        self._into.truncate()
        self.size = 0
        self.digest = hashlib.sha256()

    @override
    def write(self, data: bytes, /) -> int:
        self._count(len(data))
        self.size += len(data)
        if self.size > self.file.bytes:
            raise NotFetched(f"{self.file.path}: expected {self.file.bytes} bytes, got more")
        self.digest.update(data)
        return self._into.write(data)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
