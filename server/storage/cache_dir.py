"""Directories for what is fetched: one that is kept, or one that goes with the process."""

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
def directory(cache: Path | None, digest: str) -> Iterator[Path]:
    """Give the directory for the bundle of this digest.

    Raises:
      FetchError: it cannot be made.
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
    """Refuse files that the disk has no room for, those that are there already apart.

    Raises:
      FetchError: says how many bytes there are.
    """
    needed = sum(max(file.bytes - _here(folder / file.path), 0) for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(
            f"{folder}: expected {needed:,} B free for the bundle, got {free:,} B; pass --cache-dir "
            "with room for the bundle"
        )


def _here(target: Path) -> int:
    """Return the bytes of a file that are there, whole or in part."""
    for path in (target, part_of(target)):
        with contextlib.suppress(OSError):
            return path.lstat().st_size
    return 0
