"""The files of the executable cache: which of them may be read, and how they are written.

Trusted are a directory that this user's processes have made for themselves, and a directory whose list
of digests the operator vouches for. A file is a header of JSON on one line, and bytes behind it.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Tell = Callable[[str], object]
Key = Mapping[str, Any]

FORMAT = 1
# The one directory that is looked at, below the one that is named.
FOLDER = "executables"
LIST = "executables.sha256"
PROGRAM, RECORD = ".xla", ".json"
# All files together; the oldest go. An executable takes 0.1 to 10 MB.
MAX_BYTES = 1 << 30
# Of one file. Larger than any executable of one device.
_MAX_FILE_BYTES = 256 << 20
_MAX_HEADER_BYTES = 1 << 16
# A temporary file that is this old was left by a process that was killed.
_ABANDONED_S = 3600.0


class Rejected(Exception):
    """A file that is not used; the message says why."""


def packed_of(key: Key, header: Mapping[str, Any], data: bytes) -> bytes:
    """Return a file's bytes: a header with format, key and digest, and the data."""
    head = {
        "format": FORMAT,
        "key": dict(key),
        "sha256": hashlib.sha256(data).hexdigest(),
        **header,
    }
    return json.dumps(head, sort_keys=True).encode() + b"\n" + data


def unpacked(packed: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a file.

    Raises:
      Rejected: it is no such file, or its data is not what its header has the digest of.
    """
    end = packed.find(b"\n", 0, _MAX_HEADER_BYTES)
    if end < 0:
        raise Rejected("expected a header, got none")
    try:
        header = json.loads(packed[:end])
    except (ValueError, RecursionError):
        raise Rejected("expected a header of JSON, got something else") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise Rejected(f"expected format {FORMAT}, got another one")
    data = packed[end + 1 :]
    if header.get("sha256") != hashlib.sha256(data).hexdigest():
        raise Rejected("its bytes are not those that its header names")
    return header, data


def write_list(directory: Path) -> str:
    """List the SHA-256 of every executable and record of a directory, and return the list's own.

    Whoever vouches for the list vouches for them all, in a process that does not own them.
    """
    folder = directory / FOLDER
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.suffix in (PROGRAM, RECORD)
    ]
    data = "".join(lines).encode()
    temporary = folder / f".{LIST}.{secrets.token_hex(8)}"
    temporary.write_bytes(data)
    temporary.replace(folder / LIST)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _read_plain(path: Path, owner: int | None) -> bytes | None:
    """Read a plain file by one descriptor, so that what was checked is what is read.

    Args:
      path: not followed where it is a link.
      owner: the user who has to own it and to be its only writer; None for any.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Rejected(
            "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Rejected("it is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        if owner is not None and (status.st_uid != owner or status.st_mode & 0o022):
            raise Rejected("others can have written it")
        if status.st_size > _MAX_FILE_BYTES:
            raise Rejected(f"expected at most {_MAX_FILE_BYTES:,} B, got {status.st_size:,}")
        try:
            return file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise Rejected(str(error.strerror)) from None


def _counts_among(names: Iterator[str], name: str) -> list[int]:
    prefix = f"{name}-t"
    found = []
    for one in names:
        middle = one[len(prefix) : -len(PROGRAM)]
        if one.startswith(prefix) and one.endswith(PROGRAM) and middle.isdecimal():
            found.append(int(middle[:6]))
    return found


class OwnFiles:
    """A directory that only this user's processes write."""

    def __init__(self, folder: Path, progress: Tell) -> None:
        self._folder = folder
        self._progress = progress
        self._usable = self._prepared()
        self._told = False

    def _prepared(self) -> bool:
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            status = self._folder.lstat()
        except OSError as error:
            self._progress(f"executable cache: {self._folder}: {error.strerror}; nothing is kept")
            return False
        if not stat.S_ISDIR(status.st_mode):
            why = "expected a directory, got something else"
        elif status.st_uid != os.geteuid():
            why = "expected a directory of this user, got another's"
        elif status.st_mode & 0o077:
            why = f"expected mode 0700, got {status.st_mode & 0o777:04o}"
        else:
            return True
        self._progress(f"executable cache: {self._folder}: {why}; it is not used")
        return False

    def thread_counts(self, name: str) -> list[int]:
        """Return the numbers of threads that a program is there for."""
        if not self._usable:
            return []
        try:
            with os.scandir(self._folder) as entries:
                return _counts_among((entry.name for entry in entries), name)
        except OSError:
            return []

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes; None if there is none.

        Raises:
          Rejected: others can have written it, or it is no plain file.
        """
        if not self._usable:
            return None
        path = self._folder / name
        data = _read_plain(path, os.geteuid())
        if data is not None:
            with contextlib.suppress(OSError):  # the oldest are those not used for longest
                os.utime(path, follow_symlinks=False)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside its place and rename it; a failure is logged once."""
        if not self._usable or len(data) > _MAX_FILE_BYTES:
            return
        temporary = self._folder / f".{name[:16]}.{secrets.token_hex(8)}"
        try:
            try:
                with open(
                    temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)
                ) as file:
                    file.write(data)
                temporary.replace(self._folder / name)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            self._trim(keep=name)
        except OSError as error:
            if not self._told:
                self._told = True
                self._progress(
                    f"executable cache: {self._folder}: {error.strerror}; what is compiled is not kept"
                )

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self._usable:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()

    def _trim(self, keep: str) -> None:
        """Remove the files that were used longest ago, as far as there are too many bytes."""
        files = []
        now = time.time()  # noqa: TID251 (compared with what the file system says)
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith("."):
                        if now - status.st_mtime > _ABANDONED_S:
                            Path(entry.path).unlink()
                    elif stat.S_ISREG(status.st_mode):
                        files.append((status.st_mtime, status.st_size, entry.name))
        total = sum(size for _, size, _ in files)
        for _, size, name in sorted(files):
            if total <= MAX_BYTES:
                break
            if name != keep:
                self.remove(name)
                total -= size


class VouchedFiles:
    """A directory of any owner, whose files are those of a list of a known digest."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        try:
            data = (folder / LIST).read_bytes()
        except OSError as error:
            raise ValueError(f"{folder / LIST}: {error.strerror}") from None
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != digest:
            raise ValueError(f"{folder / LIST}: expected digest {digest}, got {found}")
        self._listed: dict[str, str] = {}
        for line in data.decode("utf-8", "replace").splitlines():
            value, _, name = line.partition("  ")
            if "/" not in name:
                self._listed[name] = value

    def thread_counts(self, name: str) -> list[int]:
        """Return the numbers of threads that a program is there for."""
        return _counts_among(iter(self._listed), name)

    def read(self, name: str) -> bytes | None:
        """Return a listed file's bytes; None if it is not listed.

        Raises:
          Rejected: it is not there, or not the one that is listed.
        """
        if name not in self._listed:
            return None
        data = _read_plain(self._folder / name, None)
        if data is None:
            raise Rejected("it is listed, and not there")
        if hashlib.sha256(data).hexdigest() != self._listed[name]:
            raise Rejected("it is not the file that is listed")
        return data
