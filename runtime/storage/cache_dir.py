"""The cache directory of fetched bundles, or a temporary one that is deleted with the process."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from runtime.entries import File
from runtime.scratch import temporary_directory
from runtime.storage.download import part_of, unwritable
from runtime.storage.store import FetchError

_PREFIX = "hloserve-fetched-"


@contextlib.contextmanager
def bundle_directory(cache: Path | None, digest: str) -> Iterator[Path]:
    """Yield the directory for the bundle of this digest.

    Raises:
      FetchError: it cannot be created.
    """
    with contextlib.ExitStack() as stack:
        try:
            if cache is None:
                made = stack.enter_context(temporary_directory(_PREFIX))
            else:
                made = cache / digest
                made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(cache or Path(tempfile.tempdir or "/tmp"), error) from None  # noqa: S108
        yield made


def expect_disk(folder: Path, files: Iterable[File]) -> None:
    """Raise if the disk has no space for files, except for bytes that are there already.

    Raises:
      FetchError: names the bytes that are needed and free.
    """
    needed = sum(max(file.bytes - _bytes_present(folder / file.path), 0) for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(
            f"{folder}: expected {needed:,} B free for the bundle, got {free:,} B; pass --cache-dir "
            "with room for the bundle"
        )


def _bytes_present(target: Path) -> int:
    """Return the bytes of a file that are there, complete or partial."""
    for path in (target, part_of(target)):
        with contextlib.suppress(OSError):
            return path.lstat().st_size
    return 0
