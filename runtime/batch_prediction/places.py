"""Where inputs are and outputs go: a folder of this machine, or one of Cloud Storage."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from runtime.batch_prediction.output import OutputError
from runtime.localpaths import why_not_read, why_not_written
from runtime.storage.uri import CloudFolder, cloud_folder

# The name of an input that is read from stdin.
STDIN = "-"


class Place(Protocol):
    """A folder with files."""

    def find(self, path: str) -> tuple[int, str] | None:
        """Return bytes and stamp of a file; None where there is no such file."""

    def below(self, path: str) -> "Place":
        """Return the folder at a path below this one."""

    def files(self) -> dict[str, tuple[int, str]]:
        """Return bytes and stamps of all files, by their paths below this folder."""

    def bring(self, paths: Sequence[str], scratch: Path) -> list[Path]:
        """Return local files for paths below this folder; copies of objects are in `scratch`."""


class LocalPlace:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, path: str) -> tuple[int, str] | None:
        """See `Place`."""
        file = self.path / path
        if file.is_dir():
            return None
        try:
            status = file.stat()
        except FileNotFoundError:
            return None
        return status.st_size, str(status.st_mtime_ns)

    def below(self, path: str) -> "LocalPlace":
        """See `Place`."""
        return LocalPlace(self.path / path)

    def files(self) -> dict[str, tuple[int, str]]:
        """See `Place`."""
        found = {}
        for directory, _, names in os.walk(self.path):
            for name in names:
                file = Path(directory, name)
                status = file.stat()
                key = file.relative_to(self.path).as_posix()
                found[key] = status.st_size, str(status.st_mtime_ns)
        return found

    def bring(self, paths: Sequence[str], _: Path) -> list[Path]:
        """See `Place`."""
        return [self.path / path for path in paths]


class CloudPlace:
    """A folder of Cloud Storage.

    Raises:
      FetchError: there is no client, or the store refuses.
    """

    def __init__(self, folder: CloudFolder) -> None:
        from runtime.storage.gcs import CloudStore
        from runtime.storage.object_copy import ObjectCopy

        self.folder = folder
        self._copy = ObjectCopy(CloudStore(folder))
        self._known: dict[str, Any] = {}

    def find(self, path: str) -> tuple[int, str] | None:
        """See `Place`."""
        found = self._copy.find(path) if path else None
        if found is None:
            return None
        self._known[path] = found
        return found.bytes, str(found.generation)

    def below(self, path: str) -> "CloudPlace":
        """See `Place`."""
        return CloudPlace(CloudFolder(self.folder.bucket, self.folder.name_of(f"{path}/")))

    def files(self) -> dict[str, tuple[int, str]]:
        """See `Place`."""
        self._known = self._copy.below("")
        return {path: (info.bytes, str(info.generation)) for path, info in self._known.items()}

    def bring(self, paths: Sequence[str], scratch: Path) -> list[Path]:
        """See `Place`; the objects are those that were found or listed before."""
        targets = [scratch / f"{i}-{Path(path).name}" for i, path in enumerate(paths)]
        self._copy.copy(
            {p: (self._known[p], target) for p, target in zip(paths, targets, strict=True)}
        )
        return targets


def place_of(name: str) -> tuple[Place, str]:
    """Return the folder that a name is in, and its path there.

    Raises:
      ValueError: it is no path and no `gs://…`; says what was expected.
      FetchError: there is no client for the store.
    """
    if name.startswith("gs://"):
        above, path = cloud_folder(name).split()
        if not path:
            raise ValueError(f"expected gs://BUCKET/PATH, got {name!r}")
        return CloudPlace(above), path
    reason = why_not_read(name)
    if reason is not None:
        raise ValueError(reason)
    return LocalPlace(Path(name).parent), Path(name).name


def output_place(name: str) -> Path | CloudFolder:
    """Return the folder that outputs go to.

    Raises:
      OutputError: it is no path and no `gs://…`; says what was expected.
    """
    if name.startswith("gs://"):
        try:
            return cloud_folder(name)
        except ValueError as error:
            raise OutputError(f"--out: {error}") from None
    reason = why_not_written(name)
    if reason is not None:
        raise OutputError(f"--out: {reason}")
    return Path(name)
