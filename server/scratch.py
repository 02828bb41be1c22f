"""Directories for what is fetched: one that is kept, or one that goes with the process."""

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runtime.scratch import passing
from server.store import NotFetched

_PREFIX = "hloserve-fetched-"


@contextlib.contextmanager
def directory(cache: Path | None, digest: str) -> Iterator[Path]:
    """Give the directory for the bundle of this digest.

    Raises:
      NotFetched: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            if cache is None:
                made = stack.enter_context(passing(_PREFIX))
            else:
                made = cache / digest
                made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(cache or Path(tempfile.tempdir or "/tmp"), error) from None  # noqa: S108
        yield made


def unwritable(where: Path, error: OSError) -> NotFetched:
    """Say what is wrong with a place, and what to do about it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    wanted = "--cache-dir with room for the bundle" if full else "a --cache-dir that can be written"
    return NotFetched(f"{where}: {error.strerror}; pass {wanted}")
