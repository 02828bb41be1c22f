"""Directories for what is fetched: one that is kept, or one that goes with the process."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
                made = stack.enter_context(_passing())
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


@contextlib.contextmanager
def _passing() -> Iterator[Path]:
    """Give a directory that goes when the context ends, or once a process is started anew.

    A server that is killed, or told to stop while it starts, leaves its directory behind, and a
    container's /tmp may outlive it. Whoever uses a directory holds its lock, which no process
    takes along when it ends.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove(left)
    with contextlib.ExitStack() as stack:
        yield _make(stack)


def _make(stack: contextlib.ExitStack) -> Path:
    while True:
        made = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        path = Path(stack.enter_context(made))
        # Before it is locked, another start may take it for one that was left.
        with contextlib.suppress(FileNotFoundError):
            stack.enter_context(_lock(path))
            if path.exists():
                return path


def _remove(left: Path) -> None:
    """Remove a directory that nobody uses."""
    with contextlib.suppress(OSError), _lock(left, fcntl.LOCK_NB):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path, how: int = 0) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)
