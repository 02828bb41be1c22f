"""The bundle directory, opened: every digest is checked before anyone sees the bytes.

Only files that the manifest names are touched; they must be regular files of the
recorded size below the bundle, reached through no symbolic link.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from runtime.claims import (
    LENGTH_BYTES,
    data_bytes,
    expect_consistent,
    expect_data,
    expect_data_of_all,
    expect_header,
)
from runtime.entries import MANIFEST_NAME, File
from runtime.errors import BundleError, IntegrityError, nearest, printable
from runtime.localpaths import why_not_read
from runtime.manifest import MAX_MANIFEST_BYTES, Manifest
from runtime.mapping import MappedFile, digest_of
from runtime.tensors import Array, read_tensors

log = logging.getLogger(__name__)

# Entries of a folder that are looked at when it is no bundle itself.
_MAX_NEIGHBOURS = 1000
# Entries that are looked at for files that the manifest does not name.
_MAX_ENTRIES = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: where it is, what it says, and the digest of what it says.

    Attributes:
      path: the directory.
      manifest: its manifest, checked.
      digest: SHA-256 of manifest.json in hex; it covers every file, since the
        manifest holds their digests.
      arrived: called before a file is opened; returns once it is there. For a bundle
        whose files are still on their way to the directory.
    """

    path: Path
    manifest: Manifest
    digest: str
    arrived: Callable[[File], None] = dataclasses.field(
        default=lambda _: None, repr=False, compare=False
    )
    _mapped: list[MappedFile] = dataclasses.field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def read(self, file: File) -> bytes:
        """Read a file whole.

        Raises:
          IntegrityError: it is not the file that the manifest describes.
        """
        with self.opened(file) as f:
            data = f.read()
        _compare(file, len(data), hashlib.sha256(data).hexdigest())
        return data

    def check(self) -> None:
        """Read every file and hold it against its digest; nothing is parsed.

        Raises:
          IntegrityError: a file is not the one that the manifest describes.
        """
        for file in self.manifest.files:
            with self.opened(file) as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            _compare(file, file.bytes, digest)

    def map(self, file: File) -> dict[str, Array]:
        """View the tensors of a safetensors file through mmap.

        Returns:
          Read-only arrays over the mapping; nothing is copied. While anything refers to them
          the file is in use: see `expect_unchanged`.

        Raises:
          IntegrityError: it is not the file that the manifest describes.
        """
        with self.opened(file) as f:
            expect_header(file, int.from_bytes(f.read(LENGTH_BYTES), "little"))
            try:
                in_use = MappedFile(self.path / file.path, file, f.fileno())
            except OSError as error:
                raise IntegrityError(
                    f"{file.path}: expected a file that can be mapped, got {error.strerror}"
                ) from None
        mapped = in_use.take()
        self._mapped.append(in_use)
        _compare(file, len(mapped), digest_of(mapped))
        return read_tensors(self.path / file.path, mapped, file.path)

    def expect_unwritten(self) -> None:
        """Raise if a file in use was written to or cut off, by its size and times; none is read.

        Raises:
          IntegrityError: names the file.
        """
        for mapped in self._in_use():
            mapped.expect_unwritten()

    def expect_unchanged(self) -> None:
        """Raise if a file in use is no longer what was checked: answers may be wrong then.

        In use are the files of which something is used where it is mapped: params on a CPU. What was
        copied to another device, and programs once they are compiled, may change or go. To be
        called now and then by the owner of the process, by one thread at a time.

        Raises:
          IntegrityError: names the file.
        """
        for mapped in self._in_use():
            mapped.expect_unchanged()

    def replaced(self) -> str:
        """Name a file in use whose place another one has taken; "" if there is none."""
        return next((m.file.path for m in self._in_use() if m.replaced), "")

    def _in_use(self) -> list[MappedFile]:
        for mapped in list(self._mapped):
            if not mapped.in_use:
                with contextlib.suppress(ValueError):  # another thread was sooner
                    self._mapped.remove(mapped)
        return list(self._mapped)

    @contextlib.contextmanager
    def opened(self, file: File) -> Iterator[BufferedReader]:
        """Open a file of the recorded size; the caller has to compare its digest."""
        self.arrived(file)
        with _opened(self.path, file) as descriptor, open(descriptor, "rb", closefd=False) as f:
            yield f

    def require(self, digest: str | None) -> None:
        """Refuse to be another bundle than the one of this digest, if one is given.

        Args:
          digest: `sha256:HEX` of manifest.json, None for any.

        Raises:
          IntegrityError: it is another one.
        """
        if digest and digest != f"sha256:{self.digest}":
            raise IntegrityError(
                f"{MANIFEST_NAME}: expected the digest {digest}, got sha256:{self.digest}"
            )


def open_bundle(path: str | os.PathLike[str], *, require_digest: str | None = None) -> Bundle:
    """Open a bundle and check that its files are there, with the recorded sizes.

    Digests are checked when a file is read, before anything parses it.

    Args:
      path: the directory.
      require_digest: `sha256:HEX`, what manifest.json has to be; None for any.

    Raises:
      BundleError: not a bundle, or one this runtime does not read.
    """
    try:
        root = Path(path)
    except TypeError:
        kind = type(path).__name__
        raise BundleError(f"bundle: expected the path of a directory, got {kind}") from None
    if reason := why_not_read(path):
        raise BundleError(f"bundle: {reason}")
    try:
        found = root.is_dir()
    except OSError as error:  # a name too long, a folder that may not be read
        raise BundleError(f"bundle {root}: expected a directory, got {error.strerror}") from None
    if not found:
        named = root.name == MANIFEST_NAME
        hint = "; name the directory that holds it" if named else _bundle_beside(root)
        raise BundleError(f"bundle {root}: expected a directory, got {_what(root)}{hint}")
    try:
        manifest_path = root / MANIFEST_NAME
        if manifest_path.is_symlink() or not manifest_path.is_file():
            raise FileNotFoundError
        with manifest_path.open("rb") as f:
            data = f.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        if near := _bundles_near(root):
            raise BundleError(
                f"bundle {root}: expected a bundle, got a folder without {MANIFEST_NAME}; there is "
                f"one in {near}"
            ) from None
        reason = error.strerror or "no regular file of that name"
        raise BundleError(
            f"bundle {root}: expected {MANIFEST_NAME}, got {reason}; an export that was "
            "interrupted leaves none"
        ) from None
    manifest = Manifest.from_bytes(data)
    bundle = Bundle(root, manifest, hashlib.sha256(data).hexdigest())
    bundle.require(require_digest)
    expect_consistent(manifest)
    stored = {}
    for file in manifest.files:
        with _opened(root, file) as descriptor:
            status = os.fstat(descriptor)
            stored[status.st_dev, status.st_ino] = data_bytes(status, descriptor)
    expect_data_of_all(sum(file.bytes for file in manifest.files), sum(stored.values()))
    _warn_about_strangers(root, manifest)
    return bundle


def _bundle_beside(root: Path) -> str:
    """Name the bundle whose name is nearest to one that is not there, or none."""
    found: list[Path] = []
    if not os.path.lexists(root):
        with contextlib.suppress(OSError):
            some = itertools.islice(root.parent.iterdir(), _MAX_NEIGHBOURS)
            found = sorted(filter(_is_bundle, some))
    return nearest(str(root), map(str, found))


def _bundles_near(root: Path) -> str:
    """Name the bundles one folder below or above one that is none, as far as they may be looked at."""
    if os.path.lexists(root / MANIFEST_NAME):
        return ""
    found = []
    with contextlib.suppress(OSError):
        some = itertools.islice(root.iterdir(), _MAX_NEIGHBOURS)
        found = sorted(entry for entry in some if _is_bundle(entry))
    above = Path(os.path.abspath(root)).parent
    if not found and _is_bundle(above):
        found = [root.parent if root.name else above]
    shown = " and in ".join(map(str, found[:3]))
    return f"{shown} and in {len(found) - 3} more" if len(found) > 3 else shown


def _is_bundle(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_NAME).is_file()
    except OSError:
        return False


def _warn_about_strangers(root: Path, manifest: Manifest) -> None:
    known = {MANIFEST_NAME, *(file.path for file in manifest.files)}
    found = (
        os.path.relpath(entry.path, root)
        for entry in itertools.islice(_entries_below(root), _MAX_ENTRIES)
        if not entry.is_dir(follow_symlinks=False)
    )
    strangers = sorted(path for path in found if path not in known)
    if strangers:
        log.warning(
            "bundle %s has files its manifest does not name: %s",
            root,
            printable(", ".join(strangers[:5])),
        )


def _entries_below(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder and in those below it; one that cannot be looked into is passed over."""
    folders = [str(root)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)


def _what(path: Path) -> str:
    if path.is_symlink():
        return "a broken symbolic link"
    return "a file" if path.exists() else "nothing there"


@contextlib.contextmanager
def _opened(root: Path, file: File) -> Iterator[int]:
    """Open a file below the bundle; no component may be a symbolic link."""
    descriptors: list[int] = []
    try:
        try:
            descriptors.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY))
            *folders, name = file.path.split("/")
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            for folder in folders:
                descriptors.append(os.open(folder, flags | os.O_DIRECTORY, dir_fd=descriptors[-1]))
            descriptors.append(os.open(name, flags, dir_fd=descriptors[-1]))
        except OSError as error:
            steps = (Path(file.path), *Path(file.path).parents)
            links = any((root / step).is_symlink() for step in steps[:-1])
            got = "a symbolic link" if links else error.strerror
            raise IntegrityError(f"{file.path}: expected a regular file, got {got}") from None
        status = os.fstat(descriptors[-1])
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{file.path}: expected a regular file, got another kind")
        if status.st_size != file.bytes:
            raise IntegrityError(f"{file.path}: expected {file.bytes} bytes, got {status.st_size}")
        expect_data(file, status, descriptors[-1])
        yield descriptors[-1]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _compare(file: File, size: int, digest: str) -> None:
    if size != file.bytes:
        raise IntegrityError(f"{file.path}: expected {file.bytes} bytes, got {size}")
    if digest != file.sha256:
        raise IntegrityError(f"{file.path}: expected sha256 {file.sha256}, got {digest}")
