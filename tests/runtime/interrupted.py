"""Writes fake bundles in processes that come to grief, one process for each step.

    python -m tests.runtime.interrupted killed|failing|full ROOT [--overwrite]
    python -m tests.runtime.interrupted race ROOT

It is a program of its own because it forks, which a process with JAX's threads must not.
Each try gets a directory ROOT/N; what it leaves there is for a test to look at. Prints the
exit status of each try, or `-9` for one that was killed, and what refused writers say; on
stdout, since anything that is imported may write to stderr.
"""

import errno
import functools
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import BundleError
from tests.runtime.fake_bundle import write_bundle

FINE, REFUSED, NO_SPACE, BROKEN = 0, 3, 28, 70
FULL = {errno.ENOSPC, errno.EFBIG}
OTHER_STEPS = {"open", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "fcntl.flock"}


def at_step(number: int, then: Callable[[], None], *, writing: bool) -> None:
    """Call something instead of this process's n-th change of the disk.

    Args:
      number: counted from 1.
      then: what happens.
      writing: count only what a full disk refuses.
    """
    left = number

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        needs_space = (
            (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
            or (event == "os.mkdir" and not Path(args[0]).exists())
            or event == "os.rename"
        )
        if needs_space or (event in OTHER_STEPS and not writing):
            left -= 1
            if left == 0:
                then()

    sys.addaudithook(hook)


def kill() -> None:
    """End this process without a chance to clean up."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """Do what a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def limit(size: int) -> None:
    """Let no file of this process grow beyond a size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


PREPARE: dict[str, Callable[[int], None]] = {
    "killed": lambda n: at_step(n, kill, writing=False),
    "failing": lambda n: at_step(n, fail, writing=True),
    "full": lambda n: limit(300 * (n - 1)),
}


def attempt(target: Path, prepare: Callable[[], None], version: str, *, overwrite: bool) -> int:
    """Write a bundle in a forked process; return its process id."""
    child = os.fork()
    if child:
        return child
    status = FINE
    try:
        prepare()
        write_bundle(target, overwrite=overwrite, version=version)
    except BundleError as error:
        status = REFUSED
        os.write(1, f"{error}\n".encode())
    except OSError as error:
        status = NO_SPACE if error.errno in FULL else BROKEN
    os._exit(status)


def status_of(child: int) -> int:
    """Wait for a child; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tries(mode: str, root: Path, *, overwrite: bool) -> None:
    """Try step after step until the fault comes after the last one."""
    status = -1
    number = 0
    while status != FINE:
        number += 1
        target = root / str(number) / "bundle"
        target.parent.mkdir()
        if overwrite:
            write_bundle(target, version="1")
        prepare = functools.partial(PREPARE[mode], number)
        child = attempt(target, prepare, "2", overwrite=overwrite)
        status = status_of(child)
        print(status, flush=True)


def race(root: Path) -> None:
    """Start eight writers of one bundle together."""
    waiting, start = os.pipe()

    def wait() -> None:
        os.close(start)
        os.read(waiting, 1)

    children = [
        attempt(root / "bundle", wait, str(version), overwrite=False) for version in range(8)
    ]
    os.close(start)
    for child in children:
        print(status_of(child), flush=True)


if __name__ == "__main__":
    mode, root, *rest = sys.argv[1:]
    # What a killed process wrote is not lost; waiting for the disk would only take time.
    os.fsync = lambda _: None
    # Whatever is imported late is imported now, not at a step that is counted.
    write_bundle(Path(root) / "first")
    if mode == "race":
        race(Path(root))
    else:
        tries(mode, Path(root), overwrite="--overwrite" in rest)
