"""Directories that go with the process that uses them, however it ends."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

# How often a directory is removed in which another process still writes.
_TRIES = 100

# Of this process, those that are there; the lock is taken while one is made.
_in_use: set[Path] = set()
_making = threading.Lock()


def remove_all() -> None:
    """Remove the directories of this process, which ends now, without leaving their contexts.

    None is made any more.
    """
    _making.acquire()
    for path in list(_in_use):
        for _ in range(_TRIES):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """Return a directory that goes when the context ends, or once a process is started anew.

    A process that is killed leaves its directory behind, and a container's /tmp may outlive it.
    Whoever uses a directory holds its lock, which no process
    takes along when it ends.

    Args:
      prefix: of the directory's name; what was left with the same one is removed.

    Raises:
      OSError: it cannot be made.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove(left)
    with contextlib.ExitStack() as stack:
        with _making:
            path = _make(prefix, stack)
            _in_use.add(path)
        stack.callback(_in_use.discard, path)
        yield path


def _make(prefix: str, stack: contextlib.ExitStack) -> Path:
    while True:
        made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
        path = Path(stack.enter_context(made))
        # Before it is locked, another start may take it for one that was left.
        with contextlib.suppress(FileNotFoundError):
            stack.enter_context(_lock(path))
            if path.exists():
                return path


def _remove(left: Path) -> None:
    """Remove a directory that no process uses."""
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
