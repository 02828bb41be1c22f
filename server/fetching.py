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
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.bundle import Bundle, open_bundle
from runtime.entries import MANIFEST_NAME, File
from runtime.manifest import Manifest
from server.artifacts import locate
from server.download import Download
from server.scratch import directory, unwritable
from server.store import Store

THREADS = 8


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
    fetch = Download(store, pause or stop.wait, stop)
    data = fetch.read_manifest()
    manifest = Manifest.from_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    with directory(cache, digest) as folder:
        pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        try:
            files = _in_order(manifest)
            fetch.begin(files)
            coming = {file: pool.submit(fetch.bring, file, folder) for file in files}

            def arrived(file: File) -> None:
                concurrent.futures.wait([coming[file]])
                fetch.check()

            yield Bundle(folder, manifest, digest, arrived)
            concurrent.futures.wait(coming.values())
            fetch.check()
            fetch.end()
            _write(folder / MANIFEST_NAME, data)
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


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")  # another process may write it too
    try:
        if path.is_file() and path.read_bytes() == data:
            return  # what is all there may be where nothing can be written
        part.write_bytes(data)
        part.rename(path)
    except OSError as error:
        raise unwritable(path, error) from None
