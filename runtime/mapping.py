"""A file that is used through mmap, and whether it still is what was checked.

Pages of a mapping are the file's: a write to the file changes them, and pages that are cut
off end the process that touches them (SIGBUS). A private copy would be safe, but would double the
memory of a model while it loads, and make one for each of several processes.
"""

import dataclasses
import hashlib
import logging
import mmap
import os
import weakref
from pathlib import Path

from runtime.entries import File
from runtime.errors import IntegrityError

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_ADVICE = "replace a bundle as a whole, by renaming, and start again"


@dataclasses.dataclass(frozen=True, slots=True)
class _Stamp:
    """What shows that a file was written to.

    Attributes:
      identity: device and inode.
      size: in bytes.
      written_ns: when its content was changed, as a writer may set it.
      changed_ns: when it, or what is recorded of it, was changed; only the kernel sets this.
    """

    identity: tuple[int, int]
    size: int
    written_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "_Stamp":
        identity = status.st_dev, status.st_ino
        return cls(identity, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class MappedFile:
    """A file of a bundle in use: from when it is mapped until the mapping is released.

    One thread at a time may check it.

    Args:
      path: of the file.
      file: its entry in the manifest.
      descriptor: of the file, open; it is left to its owner.

    Attributes:
      path: the same.
      file: the same.
    """

    def __init__(self, path: Path, file: File, descriptor: int) -> None:
        self.path = path
        self.file = file
        # Before a byte is read: what is written from now on is seen by the digest, or by the stamp.
        self._stamp = _Stamp.of(os.fstat(descriptor))
        mapped = mmap.mmap(descriptor, file.bytes, access=mmap.ACCESS_READ)
        self._descriptor = os.dup(descriptor)
        self._mapped = weakref.ref(mapped)
        weakref.finalize(mapped, os.close, self._descriptor).atexit = False
        self._first = mapped  # until `take`

    def take(self) -> mmap.mmap:
        """Hand the mapping over; the file is in use for as long as anything refers to that."""
        mapped = self._first
        del self._first
        return mapped

    @property
    def in_use(self) -> bool:
        """Whether anything still refers to the mapping."""
        return self._mapped() is not None

    def expect_unwritten(self) -> None:
        """Raise if the file was written to or cut off, by its size and times; it is not read.

        Raises:
          IntegrityError: it was, or that is not known.
        """
        mapped = self._mapped()  # keeps the descriptor open
        if mapped is not None:
            self._look()

    def expect_unchanged(self) -> None:
        """Raise if the file is no longer what was checked.

        Where something else of it was changed than its size and the time of its content, such as
        its mode, its owner or its names, it is read once more: that time can be set to anything.

        Raises:
          IntegrityError: it is not, or that is not known.
        """
        mapped = self._mapped()
        if mapped is None:
            return
        stamp = self._look()
        if stamp == self._stamp:
            return
        found = digest_of(mapped)
        self._look()
        if found != self.file.sha256:
            raise IntegrityError(
                f"{self.file.path}: expected sha256 {self.file.sha256} for as long as it is in use, "
                f"got {found}; {_ADVICE}"
            )
        log.info("%s: its mode, owner or names were changed, its content was not", self.file.path)
        self._stamp = stamp

    @property
    def replaced(self) -> bool:
        """Whether another file is in its place now. What is mapped is the one that was there."""
        try:
            status = self.path.stat(follow_symlinks=False)
        except OSError:
            return False
        return self.in_use and (status.st_dev, status.st_ino) != self._stamp.identity

    def _look(self) -> _Stamp:
        """Return what the file is like now, unless it was written to."""
        known = self._stamp
        try:
            stamp = _Stamp.of(os.fstat(self._descriptor))
        except OSError as error:  # a network's file system has lost it
            got = error.strerror
        else:
            if dataclasses.replace(stamp, changed_ns=known.changed_ns) == known:
                return stamp
            cut = stamp.size != known.size
            got = f"{stamp.size} of its {known.size} bytes" if cut else "one that was written to"
        raise IntegrityError(
            f"{self.file.path}: expected the file that was checked for as long as it is in use, "
            f"got {got}; {_ADVICE}"
        )


def digest_of(data: mmap.mmap | bytes) -> str:
    """Return the SHA-256 of bytes in hex; other threads run meanwhile."""
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for start in range(0, len(view), _CHUNK):
            digest.update(view[start : start + _CHUNK])
    return digest.hexdigest()
