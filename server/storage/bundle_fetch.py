"""A bundle on its way from a store to a directory, used while it arrives.

1. the manifest is read, and what it claims held against memory, the disk and the objects' sizes
2. the files it names are fetched, several at a time: programs first, since they are small and
   compiling them takes long, then params, goldens, and what is only kept
3. a file's digest is taken while it streams into `NAME.part`; it gets its name when it is right
4. manifest.json is written when all are there

What a store lists is never asked for: an object that the manifest does not name is not
touched, and names that lead out of the directory are no manifest's.
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
from runtime.storage.download import Download, unwritable
from runtime.storage.store import Store
from runtime.storage.uri import locate
from server.storage.cache_dir import directory, expect_disk

THREADS = 8


@contextlib.contextmanager
def fetching(
    store: Store,
    cache: Path | None,
    pause: Callable[[float], object] | None = None,
    require_digest: str = "",
    device: str = "",
) -> Iterator[Bundle]:
    """Fetch a bundle; it can be used at once, and each file is waited for when it is opened.

    Args:
      store: where it is; as text, what messages call it.
      cache: keeps the bundle, below its digest, for the next start. Without one the files are
        gone when the context ends: what was loaded lives on in memory.
      pause: waits so many seconds before another try.
      require_digest: `sha256:HEX`, which bundle it has to be, "" for any. Where the cache has just
        that one, the store is not asked which one it has.
      device: the name of what it is for, "" for any.

    Raises:
      BundleError: it is not there, or not whole; also where a file is waited for. Or it claims
        more than there can be here.
    """
    stop = threading.Event()
    fetch = Download(store, pause or stop.wait, stop)
    data = _kept_manifest(cache, require_digest) or fetch.read_manifest()
    manifest = Manifest.from_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    _expect_room(manifest, device)
    with directory(cache, digest) as folder:
        pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        try:
            files = _in_order(manifest)
            expect_disk(folder, files)
            fetch.begin(files)
            for _ in pool.map(lambda file: fetch.stat(file, folder), files):
                pass  # raises what one of them does
            coming = {file: pool.submit(fetch.fetch_file, file, folder) for file in files}

            def arrived(file: File) -> None:
                concurrent.futures.wait([coming[file]])
                fetch.check()

            yield Bundle(folder, manifest, digest, arrived)
            concurrent.futures.wait(coming.values())
            fetch.check()
            _write(folder / MANIFEST_NAME, data)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def bundle_at(
    name: str, cache_dir: str, require_digest: str = "", device: str = ""
) -> Iterator[Bundle]:
    """Open the bundle that `--bundle` names, wherever it is; see `artifacts` for the names.

    Args:
      name: of the bundle.
      cache_dir: see `fetching`; "" for none.
      require_digest: likewise. Whoever uses the bundle holds it against that.
      device: likewise.

    Raises:
      BundleError: it is not there, or not whole.
    """
    place = locate(name)
    if isinstance(place, Path):
        yield open_bundle(place)
        return
    from runtime.storage.gcs import CloudStore

    cache = Path(cache_dir) if cache_dir else None
    with fetching(CloudStore(place), cache, require_digest=require_digest, device=device) as bundle:
        yield bundle


def _kept_manifest(cache: Path | None, require_digest: str) -> bytes | None:
    """Give the manifest of the one bundle that will do, if the cache has it."""
    digest = require_digest.removeprefix("sha256:")
    if cache is None or not digest:
        return None
    try:
        data = (cache / digest / MANIFEST_NAME).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None


def _expect_room(manifest: Manifest, device: str) -> None:
    """Refuse what this machine cannot load, as far as that is known without its devices."""
    expect_consistent(manifest)
    on_cpu = device.startswith("cpu") or manifest.platforms == ("cpu",)
    expect_memory(
        manifest,
        params=host_memory() if on_cpu else None,
        device=None,
        host=host_memory_free(),
    )


def _in_order(manifest: Manifest) -> list[File]:
    programs = [program.exported for program in manifest.programs]
    return list(dict.fromkeys([*programs, *manifest.params.files, *manifest.files]))


def _write(path: Path, data: bytes) -> None:
    # Others may write it too, and in containers all of them are process 1.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        if path.is_file() and path.read_bytes() == data:
            return  # what is all there may be where nothing can be written
        part.write_bytes(data)
        part.rename(path)
    except OSError as error:
        raise unwritable(path, error) from None
