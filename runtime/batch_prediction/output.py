"""A folder that a run writes: complete files only, one run at a time, local or in Cloud Storage."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from runtime.storage.store import ObjectChanged
from runtime.storage.uri import CloudFolder

_PARTIAL = ".partial"


class OutputError(Exception):
    """A folder that a run cannot write, or go on in; the message names it and says what to do."""


class Output(Protocol):
    """A folder of complete files."""

    def names(self) -> list[str]:
        """Return the names of what is in the folder, partial files apart."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none."""

    def partial(self, name: str) -> Path:
        """Return the local path where a file is written before it is complete."""

    def commit(self, name: str) -> None:
        """Put the file at `partial(name)` into the folder, under its name, all at once."""

    def write(self, name: str, data: bytes) -> None:
        """Put a small file into the folder, all at once."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


class LocalOutput:
    """A folder of this machine. Made by `open_output`, which holds its lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        for left in path.glob(f".*{_PARTIAL}"):
            left.unlink()

    def __str__(self) -> str:
        """Return its path."""
        return str(self._path)

    def names(self) -> list[str]:
        """See `Output`."""
        names = (path.name for path in self._path.iterdir())
        return sorted(name for name in names if not name.endswith(_PARTIAL))

    def read(self, name: str) -> bytes | None:
        """See `Output`."""
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def partial(self, name: str) -> Path:
        """See `Output`."""
        return self._path / f".{name}{_PARTIAL}"

    def commit(self, name: str) -> None:
        """See `Output`."""
        path = self.partial(name)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(self._path / name)
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def write(self, name: str, data: bytes) -> None:
        """See `Output`."""
        try:
            self.partial(name).write_bytes(data)
            self.commit(name)
        except OSError:  # of a full disk
            self.partial(name).unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """See `Output`."""
        (self._path / name).unlink(missing_ok=True)


class CloudOutput:
    """A folder of Cloud Storage; files are written to a local directory first.

    A second run is noticed by the generation of what both replace, since there are no locks.

    Args:
      folder: of the bucket.
      scratch: a local directory.

    Raises:
      FetchError: there is no client, or the store refuses.
    """

    def __init__(self, folder: CloudFolder, scratch: Path) -> None:
        from runtime.storage.object_writer import ObjectWriter

        self._folder = folder
        self._scratch = scratch
        self._objects = ObjectWriter(folder)
        self._generations: dict[str, int] = {}

    def __str__(self) -> str:
        """Return it as `gs://…`."""
        return str(self._folder)

    def names(self) -> list[str]:
        """See `Output`."""
        return self._objects.names()

    def read(self, name: str) -> bytes | None:
        """See `Output`."""
        found = self._objects.read(name, self._scratch / f"{name}.read")
        self._generations[name] = 0 if found is None else found[1]
        return None if found is None else found[0]

    def partial(self, name: str) -> Path:
        """See `Output`."""
        return self._scratch / name

    def commit(self, name: str) -> None:
        """See `Output`."""
        known = self._generations.get(name)
        try:
            generation = self._objects.write(name, self.partial(name), known)
        except ObjectChanged:
            raise in_use(str(self)) from None
        if known is not None:
            self._generations[name] = generation
        self.partial(name).unlink()

    def write(self, name: str, data: bytes) -> None:
        """See `Output`."""
        self.partial(name).write_bytes(data)
        self.commit(name)

    def remove(self, name: str) -> None:
        """See `Output`."""
        self._objects.remove(name)


def in_use(name: str) -> OutputError:
    """Return the error of a folder that another run writes."""
    return OutputError(
        f"--out {name}: expected a folder that no other run writes, got one that is being written; wait for "
        "that run, or take another folder"
    )


@contextlib.contextmanager
def open_output(place: Path | CloudFolder, scratch: Path) -> Iterator[Output]:
    """Open a folder for one run, which has it until the context ends or its process does.

    Args:
      place: the folder; a local one is made, and removed again where an error leaves nothing in it.
      scratch: a local directory.

    Raises:
      OutputError: another run has it, or it is no folder.
      FetchError: the store refuses.
    """
    if isinstance(place, CloudFolder):
        yield CloudOutput(place, scratch)
        return
    made = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OutputError(f"--out {place}: expected a folder, got a file") from None
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use(str(place)) from None
        yield LocalOutput(place)
        made = False
    finally:
        if made:  # for a run that did not begin
            with contextlib.suppress(OSError):
                place.rmdir()
        os.close(descriptor)
