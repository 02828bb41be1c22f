"""Download of a bundle from a store to a directory; it can be used while its files arrive.

1. the manifest is read, and its claims checked against memory, the disk and the objects' sizes
2. the files it names are downloaded concurrently: programs first, since they are small and
   compiling them takes long, then params, goldens, and the rest
3. a file's digest is computed while it streams into `NAME.part`, which is renamed when it is right
4. manifest.json is written when all files are there

The store is never listed: an object that the manifest does not name is not
touched, and a manifest has no names that lead out of the directory.
"""

import concurrent.futures
import contextlib
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.bundle import Bundle, open_bundle
from runtime.claims import expect_consistent, expect_memory
from runtime.device import host_memory, host_memory_free
from runtime.entries import MANIFEST_NAME, File
from runtime.manifest import Manifest
from runtime.storage.cache_dir import bundle_directory, expect_disk
from runtime.storage.download import Download, unwritable
from runtime.storage.store import Store
from runtime.storage.uri import locate

THREADS = 8


@contextlib.contextmanager
def fetching(
    store: Store,
    cache: Path | None,
    pause: Callable[[float], object] | None = None,
    require_digest: str = "",
    device: str = "",
) -> Iterator[Bundle]:
    """Yield a bundle while it is downloaded: opening a file of it waits until that is complete.

    Args:
      store: has the bundle; its `str` is the bundle's name in messages.
      cache: directory that keeps the bundle, below its digest, for the next start. Without one
        the files are deleted when the context ends: what was loaded stays in memory.
      pause: waits so many seconds before a retry.
      require_digest: `sha256:HEX` of the expected bundle, "" for any. Where the cache has that
        manifest, the store's is not read.
      device: name of the device that the bundle is for, "" for any.

    Raises:
      BundleError: it is not there or incomplete, also raised where a file is opened; or it claims
        more memory or disk than there is.
    """
    stop = threading.Event()
    fetch = Download(store, pause or stop.wait, stop)
    data = _cached_manifest(cache, require_digest) or fetch.read_manifest()
    manifest = Manifest.from_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    _check_claims(manifest, device)
    with bundle_directory(cache, digest) as folder:
        pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        try:
            files = _by_priority(manifest)
            expect_disk(folder, files)
            fetch.begin(files)
            for _ in pool.map(lambda file: fetch.stat(file, folder), files):
                pass  # raises the first error
            pending = {file: pool.submit(fetch.fetch_file, file, folder) for file in files}

            def wait_for(file: File) -> None:
                concurrent.futures.wait([pending[file]])
                fetch.check()

            yield Bundle(folder, manifest, digest, wait_for)
            concurrent.futures.wait(pending.values())
            fetch.check()
            _write(folder / MANIFEST_NAME, data)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def bundle_at(
    name: str, cache_dir: str, require_digest: str = "", device: str = ""
) -> Iterator[Bundle]:
    """Yield the bundle of a name: a directory, `file://…` or `gs://…`; see `uri`.

    Args:
      name: of the bundle.
      cache_dir: as `cache` of `fetching`; "" for none.
      require_digest: likewise; not checked here, see `Bundle.require`.
      device: likewise.

    Raises:
      BundleError: it is not there, or incomplete.
      ValueError: the name is neither a path nor such a URL.
    """
    place = locate(name)
    if isinstance(place, Path):
        yield open_bundle(place)
        return
    from runtime.storage.gcs import CloudStore

    cache = Path(cache_dir) if cache_dir else None
    with fetching(CloudStore(place), cache, require_digest=require_digest, device=device) as bundle:
        yield bundle


def _cached_manifest(cache: Path | None, require_digest: str) -> bytes | None:
    """Return the manifest of the required bundle, if the cache has it."""
    digest = require_digest.removeprefix("sha256:")
    if cache is None or not digest:
        return None
    try:
        data = (cache / digest / MANIFEST_NAME).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None


def _check_claims(manifest: Manifest, device: str) -> None:
    """Raise for a bundle that this machine cannot load, as far as known without its devices."""
    expect_consistent(manifest)
    on_cpu = device.startswith("cpu") or manifest.platforms == ("cpu",)
    expect_memory(
        manifest,
        params=host_memory() if on_cpu else None,
        device=None,
        host=host_memory_free(),
    )


def _by_priority(manifest: Manifest) -> list[File]:
    programs = [program.exported for program in manifest.programs]
    return list(dict.fromkeys([*programs, *manifest.params.files, *manifest.files]))


def _write(path: Path, data: bytes) -> None:
    # Other processes may write it too, and in containers each of them has process id 1.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        if path.is_file() and path.read_bytes() == data:
            return  # a complete bundle may be on a read-only disk
        part.write_bytes(data)
        part.rename(path)
    except OSError as error:
        raise unwritable(path, error) from None
