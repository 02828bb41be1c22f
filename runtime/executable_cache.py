"""Compiled programs on disk, and what is known of bundles here, so that a start need not find out again.

An executable is code, and XLA checks next to nothing when it loads one. So two things decide
what is loaded:

* *The key*: everything that it was compiled from and for. A file whose key is another one is
  not looked at further. Which instructions it needs is read from its bytes each time.
* *Trust*: what this user's own processes have written to a directory that is theirs alone, or
  files whose SHA-256 stands in a list that the operator vouches for by its digest. Nothing that
  comes with a bundle is ever loaded.

Whatever is wrong with a file, or with the disk, costs a compile and a line in the log.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.device import cpu_features

FORMAT = 1
# The one directory that is looked at, below the one that is named.
FOLDER = "executables"
LIST = "executables.sha256"
# All files together; the oldest go. An executable takes 0.1 to 10 MB.
MAX_BYTES = 1 << 30
# Of one file. Larger than any executable of one device.
_MAX_FILE_BYTES = 256 << 20
_MAX_HEADER_BYTES = 1 << 16
# A temporary file that is this old was left by a process that was killed.
_ABANDONED_S = 3600.0
_MAX_SECONDS = 3600.0
# LLVM's list of features: `+avx,+avx2,…,-amx-tile`.
_FEATURES = re.compile(rb"(?:[+-][a-z0-9][a-zA-Z0-9._-]*,){4,}[+-][a-z0-9][a-zA-Z0-9.-]*")
_PROGRAM, _RECORD = ".xla", ".json"

Tell = Callable[[str], None]
Key = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Executable:
    """A compiled program as it is kept.

    Attributes:
      data: the bytes that XLA serialized.
      threads: that it computes with; 0 where that is not the program's to say.
      data_dependent: whether how long it runs depends on its inputs.
      fallback: why it was made from `.stablehlo`; empty if it was not.
    """

    data: bytes
    threads: int
    data_dependent: bool = False
    fallback: str = ""


class _Rejected(Exception):
    """A file that is not used; the message says why."""


class ExecutableCache:
    """Executables and records in one directory of this user's, and in one that is vouched for.

    For several threads and processes at once: files are written beside their place and renamed.

    Args:
      directory: below which they are kept; made where it is missing. None keeps nothing.
      progress: called with one line for each thing that cannot be used.
      exact_threads: whether a program that computes with another number of threads is none.
      vouched: a directory of executables, and the digest of its list of them.
    """

    def __init__(
        self,
        directory: Path | None,
        progress: Tell = lambda _: None,
        *,
        exact_threads: bool = False,
        vouched: tuple[Path, str] | None = None,
    ) -> None:
        self._progress = progress
        self._exact_threads = exact_threads
        self._told_of_threads = False
        self._own = _Own(directory / FOLDER, progress) if directory else None
        self._vouched = None
        if vouched is not None:
            try:
                self._vouched = _Vouched(*vouched)
            except ValueError as error:
                progress(f"executable cache: {error}; none of them is used")

    def executable(self, key: Key, threads: int) -> Executable | None:
        """Return the program of a key; None if there is none that may be used.

        Args:
          key: what it has to have been compiled from and for.
          threads: how many it should compute with. One of another number is better than none.
        """
        name = _name(key)
        for place in self._places():
            for count in _nearest(threads, place.thread_counts(name)):
                if self._exact_threads and count != threads:
                    continue
                file = f"{name}-t{count}{_PROGRAM}"
                with self._rejecting(file):
                    data = place.read(file)
                    if data is not None:
                        executable = _executable(*_unpacked(data), key, count)
                        _expect_instructions(executable.data, key)
                        if count != threads and not self._told_of_threads:
                            self._told_of_threads = True
                            self._progress(
                                f"executable cache: took programs for {count} threads, for want of some "
                                f"for {threads}"
                            )
                        return executable
        return None

    def keep(self, key: Key, executable: Executable) -> None:
        """Keep a program; that it cannot be is told, and nothing else."""
        if self._own is None:
            return
        header = {
            "threads": executable.threads,
            "data_dependent": executable.data_dependent,
            "fallback": executable.fallback,
        }
        name = f"{_name(key)}-t{executable.threads}{_PROGRAM}"
        self._own.write(name, _packed(key, header, executable.data))

    def forget(self, key: Key) -> None:
        """Remove a program that turned out to be wrong."""
        if self._own is not None:
            for count in self._own.thread_counts(_name(key)):
                self._own.remove(f"{_name(key)}-t{count}{_PROGRAM}")

    def record(self, key: Key) -> dict[str, Any]:
        """Return what was found out before about something with this key; empty if nothing."""
        name = f"{_name(key)}{_RECORD}"
        for place in self._places():
            with self._rejecting(name):
                data = place.read(name)
                if data is not None:
                    return _record(*_unpacked(data), key)
        return {}

    def keep_record(self, key: Key, record: Mapping[str, Any]) -> None:
        """Keep what was found out: JSON values by name."""
        if self._own is not None:
            data = json.dumps(dict(record), sort_keys=True).encode()
            self._own.write(f"{_name(key)}{_RECORD}", _packed(key, {}, data))

    def _places(self) -> Iterator["_Own | _Vouched"]:
        if self._vouched is not None:
            yield self._vouched
        if self._own is not None:
            yield self._own

    @contextlib.contextmanager
    def _rejecting(self, name: str) -> Iterator[None]:
        try:
            yield
        except _Rejected as error:
            self._progress(
                f"executable cache: {name[:12]}…{Path(name).suffix} is not used: {error}"
            )


def seconds_of(value: object) -> float | None:
    """Return a run time that was kept, if it can be one: finite, positive, of an hour at most."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 < value <= _MAX_SECONDS else None


def required_features(data: bytes) -> frozenset[str] | None:
    """Return the instruction sets that a CPU's program may use, by LLVM's names; None if untold.

    Preferences in tuning, such as `prefer-no-gather`, require nothing.
    """
    listed = _FEATURES.findall(data)
    if not listed:
        return None
    features = {
        feature[1:].decode()
        for one in listed
        for feature in one.split(b",")
        if feature.startswith(b"+")
    }
    return frozenset(feature for feature in features if not feature.startswith("prefer-"))


def write_list(directory: Path) -> str:
    """List the SHA-256 of every executable and record of a directory, and return the list's own.

    Whoever vouches for the list vouches for them all, in a process that does not own them.
    """
    folder = directory / FOLDER
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.suffix in (_PROGRAM, _RECORD)
    ]
    data = "".join(lines).encode()
    temporary = folder / f".{LIST}.{secrets.token_hex(8)}"
    temporary.write_bytes(data)
    temporary.replace(folder / LIST)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _name(key: Key) -> str:
    return hashlib.sha256(_canonical(key)).hexdigest()


def _canonical(key: Key) -> bytes:
    return json.dumps(dict(key), sort_keys=True, separators=(",", ":")).encode()


def _nearest(wanted: int, counts: list[int]) -> list[int]:
    return sorted(counts, key=lambda count: (abs(count - wanted), count))


def _packed(key: Key, header: Mapping[str, Any], data: bytes) -> bytes:
    head = {
        "format": FORMAT,
        "key": dict(key),
        "sha256": hashlib.sha256(data).hexdigest(),
        **header,
    }
    return json.dumps(head, sort_keys=True).encode() + b"\n" + data


def _unpacked(packed: bytes) -> tuple[dict[str, Any], bytes]:
    end = packed.find(b"\n", 0, _MAX_HEADER_BYTES)
    if end < 0:
        raise _Rejected("expected a header, got none")
    try:
        header = json.loads(packed[:end])
    except (ValueError, RecursionError):
        raise _Rejected("expected a header of JSON, got something else") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _Rejected(f"expected format {FORMAT}, got another one")
    data = packed[end + 1 :]
    if header.get("sha256") != hashlib.sha256(data).hexdigest():
        raise _Rejected("its bytes are not those that its header names")
    return header, data


def _expect_key(header: Mapping[str, Any], key: Key) -> None:
    found = header.get("key")
    if not isinstance(found, dict) or _canonical(found) != _canonical(key):
        differ = sorted(k for k in key if not isinstance(found, dict) or found.get(k) != key[k])
        raise _Rejected(f"it is of another {', '.join(differ) or 'key'}")


def _executable(header: Mapping[str, Any], data: bytes, key: Key, threads: int) -> Executable:
    _expect_key(header, key)
    fallback, dependent = header.get("fallback"), header.get("data_dependent")
    if header.get("threads") != threads or not isinstance(dependent, bool):
        raise _Rejected("its header says something else than its name")
    if not isinstance(fallback, str):
        raise _Rejected("its header does not say what it was made from")
    return Executable(data, threads, dependent, fallback)


def _expect_instructions(data: bytes, key: Key) -> None:
    """Refuse a program of a CPU that this machine's may not be able to run: it would end by SIGILL."""
    if key.get("platform") != "cpu":
        return
    needed, here = required_features(data), cpu_features()
    if needed is None or here is None:
        raise _Rejected("nobody says which instructions it needs, or this CPU has")
    if not needed <= here:
        raise _Rejected(f"it needs {', '.join(sorted(needed - here)[:5])}, which this CPU lacks")


def _record(header: Mapping[str, Any], data: bytes, key: Key) -> dict[str, Any]:
    _expect_key(header, key)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Rejected("expected an object of JSON, got something else")
    return found


def _read_plain(path: Path, owner: int | None) -> bytes | None:
    """Read a plain file by one descriptor, so that what was checked is what is read.

    Args:
      path: not followed where it is a link.
      owner: whose it has to be, and written by them alone; None for anybody's.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Rejected(
            "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _Rejected("it is no plain file")
    with os.fdopen(descriptor, "rb") as file:
        if owner is not None and (status.st_uid != owner or status.st_mode & 0o022):
            raise _Rejected("others can have written it")
        if status.st_size > _MAX_FILE_BYTES:
            raise _Rejected(f"expected at most {_MAX_FILE_BYTES:,} B, got {status.st_size:,}")
        try:
            return file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise _Rejected(str(error.strerror)) from None


def _counts_among(names: Iterator[str], name: str) -> list[int]:
    prefix = f"{name}-t"
    found = []
    for one in names:
        middle = one[len(prefix) : -len(_PROGRAM)]
        if one.startswith(prefix) and one.endswith(_PROGRAM) and middle.isdecimal():
            found.append(int(middle[:6]))
    return found


class _Own:
    """A directory that this user's processes write, and nobody else."""

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
        if not self._usable:
            return []
        try:
            with os.scandir(self._folder) as entries:
                return _counts_among((entry.name for entry in entries), name)
        except OSError:
            return []

    def read(self, name: str) -> bytes | None:
        if not self._usable:
            return None
        path = self._folder / name
        data = _read_plain(path, os.geteuid())
        if data is not None:
            with contextlib.suppress(OSError):  # the oldest are those not used for longest
                os.utime(path, follow_symlinks=False)
        return data

    def write(self, name: str, data: bytes) -> None:
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


class _Vouched:
    """A directory that anybody may own, whose files are those of a list of a known digest."""

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
        return _counts_among(iter(self._listed), name)

    def read(self, name: str) -> bytes | None:
        if name not in self._listed:
            return None
        data = _read_plain(self._folder / name, None)
        if data is None:
            raise _Rejected("it is listed, and not there")
        if hashlib.sha256(data).hexdigest() != self._listed[name]:
            raise _Rejected("it is not the file that is listed")
        return data
