"""A directory such as a bundle, written: whole or not at all.

Writing goes to a hidden sibling directory that is fsynced and renamed into place.
When a bundle is replaced the old one is renamed aside first; should the process die
between the two renames, the next writer finishes the swap. What dead writers left
behind is removed by the next one; a living writer holds a lock on its directory.
A file that is always there, such as a bundle's manifest, marks a complete one.
"""

import contextlib
import fcntl
import hashlib
import itertools
import logging
import mmap
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

import numpy as np

from runtime.entries import MANIFEST_NAME, File
from runtime.errors import BundleError, IntegrityError, ManifestError, UnsupportedFormat
from runtime.localpaths import why_not_written
from runtime.manifest import Manifest
from runtime.tensors import Array, read_tensors, write_tensors

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


class DirectoryWriter:
    """Writes a directory beside its target and puts it in place in one rename.

    Use as a context manager; leaving it without `commit` removes what was written.

    Args:
      target: the directory to make.
      overwrite: replace one of the same kind that is there.

    Attributes:
      target: the directory to make, absolute.
      path: where to write.

    Raises:
      BundleError: the target exists and is not to be, or cannot be, replaced; or it is a URL.
    """

    kind: ClassVar[str]
    marker: ClassVar[str]  # a file in every directory of this kind

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        if reason := why_not_written(target):
            raise BundleError(f"{self.kind}: {reason}")
        self.target = Path(os.path.abspath(target))
        self._overwrite = overwrite
        self._parent = self.target.parent
        self._token = secrets.token_hex(4)
        self.path = self._parent / f".{self.target.name}.staging-{self._token}"
        self._aside = self._parent / f".{self.target.name}.replaced-{self._token}"
        self._lock = -1
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        """Finish what an earlier writer left, then make the staging directory."""
        above = (self._parent, *self._parent.parents)
        self._made = list(itertools.takewhile(lambda folder: not folder.exists(), above))
        self._parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._parent):
            self._finish_earlier_writers()
            self._check_target()
            self.path.mkdir()
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was replaced; or what was made, unless it was committed."""
        os.close(self._lock)
        self._remove(self.path)
        if os.path.lexists(self.target):
            self._remove(self._aside)
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def commit(self) -> None:
        """Put what was written in place.

        Raises:
          BundleError: another writer was faster.
        """
        with self.committed():
            pass

    @contextlib.contextmanager
    def committed(self) -> Iterator[None]:
        """Put what was written in place, for good only if this block does not fail.

        Raises:
          BundleError: another writer was faster.
        """
        for path in (self.path, *self.path.rglob("*")):
            _fsync(path)
        try:
            self._put()
            yield
        except BaseException:
            self._take_back()
            raise

    def _put(self) -> None:
        with _locked(self._parent):
            self._check_target()
            if self._overwrite and self.target.exists():
                self.target.rename(self._aside)
            try:
                self.path.rename(self.target)
            except OSError as error:
                raise BundleError(f"{self.kind} {self.target}: {error.strerror}") from error
            _fsync(self._parent)

    def _take_back(self) -> None:
        """Undo as much of putting it in place as was done."""
        with _locked(self._parent):
            if self.target.exists() and os.path.samestat(self.target.stat(), os.fstat(self._lock)):
                self.target.rename(self.path)
            if self._aside.exists() and not os.path.lexists(self.target):
                self._aside.rename(self.target)

    def _check_target(self) -> None:
        target = self.target
        if not target.exists() and not target.is_symlink():
            return
        if not self._overwrite:
            raise BundleError(f"{self.kind} {target}: exists; pass --overwrite to replace it")
        replaceable = target.is_dir() and not target.is_symlink()
        if not replaceable or (any(target.iterdir()) and not self._is_one(target)):
            raise BundleError(
                f"{self.kind} {target}: exists and is not a {self.kind}; it is left alone"
            )

    def _finish_earlier_writers(self) -> None:
        """Finish an interrupted swap and remove what dead writers left; under the lock."""
        for aside in self._leftovers("replaced"):
            new = self._parent / f".{self.target.name}.staging-{aside.name[-8:]}"
            whole = [folder for folder in (new, aside) if (folder / self.marker).is_file()]
            if whole and not os.path.lexists(self.target):
                whole[0].rename(self.target)
                log.warning("%s %s: finished a swap that was interrupted", self.kind, self.target)
            self._remove(aside)
        for folder in self._leftovers("staging"):
            if _abandoned(folder):
                self._remove(folder)

    def _leftovers(self, kind: str) -> list[Path]:
        """Find what writers of this target left: `.NAME.KIND-TOKEN`."""
        pattern = re.compile(rf"\.{re.escape(self.target.name)}\.{kind}-[0-9a-f]{{8}}")
        return sorted(p for p in self._parent.iterdir() if pattern.fullmatch(p.name))

    def _is_one(self, folder: Path) -> bool:
        """Return whether a directory is of this writer's kind."""
        return (folder / self.marker).is_file()

    def _remove(self, folder: Path) -> None:
        """Remove a directory, its marker first: without it the rest is not taken for a complete one."""
        with contextlib.suppress(OSError):
            (folder / self.marker).unlink()
        shutil.rmtree(folder, ignore_errors=True)


class BundleWriter(DirectoryWriter):
    """Writes a bundle, whole or not at all."""

    kind = "bundle"
    marker = MANIFEST_NAME

    def write(self, path: str, data: bytes) -> File:
        """Write one file below the bundle."""
        with self._create(path) as f:
            f.write(data)
        return File(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def write_tensors(self, path: str, tensors: Mapping[str, Array]) -> File:
        """Write one safetensors file below the bundle, and read it back to compare.

        Raises:
          BundleError: what was read back differs from what was to be written.
        """
        with self._create(path) as f:
            write_tensors(f, tensors)
        with (self.path / path).open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            mapped = mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ)
        back = read_tensors(self.path / path, mapped)
        for name, tensor in tensors.items():
            same = back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
            if not same or not _same_bytes(back[name], tensor):
                raise BundleError(f"{path}: {name!r} reads back differently. This is a bug.")
        return File(path=path, bytes=size, sha256=digest)

    def copy(self, file: File, source: BinaryIO) -> None:
        """Copy a file of another bundle.

        Raises:
          IntegrityError: it is not the file that the other manifest describes.
        """
        digest = hashlib.sha256()
        with self._create(file.path) as f:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                f.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise IntegrityError(
                f"{file.path}: expected sha256 {file.sha256}, got {digest.hexdigest()}"
            )

    def write_manifest(self, manifest: Manifest) -> None:
        """Write, or write again, the manifest of the staged bundle."""
        data = manifest.to_bytes()
        if Manifest.from_bytes(data) != manifest:
            raise BundleError("manifest.json reads back differently. This is a bug.")
        temporary = self.path / f"{MANIFEST_NAME}.new"
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.rename(self.path / MANIFEST_NAME)

    @contextlib.contextmanager
    def _create(self, path: str) -> Iterator[BinaryIO]:
        full = self.path / path
        full.parent.mkdir(parents=True, exist_ok=True)
        with full.open("xb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())

    def _is_one(self, folder: Path) -> bool:
        """Return whether a directory holds a bundle, of this format version or another."""
        manifest = folder / self.marker
        try:
            return manifest.is_file() and bool(Manifest.from_bytes(manifest.read_bytes()))
        except UnsupportedFormat:
            return True
        except ManifestError:
            return False


def _same_bytes(a: Array, b: Array) -> bool:
    return np.array_equal(_words(a), _words(b))


def _words(array: Array) -> Array:
    """View an array's bytes in the widest units that divide them; comparing these is quick."""
    flat = np.asarray(array, order="C").reshape(-1)
    return flat.view(np.uint64 if flat.nbytes % 8 == 0 else np.uint8)


def _abandoned(folder: Path) -> bool:
    """Return whether the writer of a staging directory is gone: it holds a lock while alive."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # it has just ended, and removed what it made
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder: renames of one target happen one at a time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
