"""Compiled programs on disk, and what is known of bundles here, so that a start need not find out again.

An executable is code, and XLA checks next to nothing when it loads one. So two things decide
what is loaded:

* *The key*: everything that it was compiled from and for. A file whose key is another one is
  not looked at further. Which instructions it needs is read from its bytes each time.
* *Trust*: what this user's own processes have written to a directory that is theirs alone, or
  files whose SHA-256 stands in a list that the operator vouches for by its digest. Nothing that
  is part of a bundle is ever loaded.

Whatever is wrong with a file, or with the disk, costs a compile and a line in the log.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from runtime.cache_files import (
    FOLDER,
    PROGRAM,
    RECORD,
    Key,
    OwnFiles,
    Rejected,
    VouchedFiles,
    packed_of,
    unpacked,
)
from runtime.device import cpu_features

_MAX_SECONDS = 3600.0
# LLVM's list of features: `+avx,+avx2,…,-amx-tile`.
_FEATURES = re.compile(rb"(?:[+-][a-z0-9][a-zA-Z0-9._-]*,){4,}[+-][a-z0-9][a-zA-Z0-9.-]*")

Tell = Callable[[str], None]


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


class ExecutableSource(Protocol):
    """Has programs that were compiled before."""

    def executable(self, key: Key, threads: int) -> Executable | None:
        """Return the program of a key; None if there is none that may be used.

        Args:
          key: what it has to have been compiled from and for.
          threads: how many it should compute with.
        """


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
        self._warned_of_threads = False
        self._own = OwnFiles(directory / FOLDER, progress) if directory else None
        self._vouched = None
        if vouched is not None:
            try:
                self._vouched = VouchedFiles(*vouched)
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
                file = f"{name}-t{count}{PROGRAM}"
                with self._rejecting(file):
                    data = place.read(file)
                    if data is not None:
                        executable = _executable(*unpacked(data), key, count)
                        _expect_instructions(executable.data, key)
                        if count != threads and not self._warned_of_threads:
                            self._warned_of_threads = True
                            self._progress(
                                f"executable cache: took programs for {count} threads, for want of some "
                                f"for {threads}"
                            )
                        return executable
        return None

    def keep(self, key: Key, executable: Executable) -> None:
        """Keep a program; a failure is only logged."""
        if self._own is None:
            return
        header = {
            "threads": executable.threads,
            "data_dependent": executable.data_dependent,
            "fallback": executable.fallback,
        }
        name = f"{_name(key)}-t{executable.threads}{PROGRAM}"
        self._own.write(name, packed_of(key, header, executable.data))

    def forget(self, key: Key) -> None:
        """Remove a program that turned out to be wrong."""
        if self._own is not None:
            for count in self._own.thread_counts(_name(key)):
                self._own.remove(f"{_name(key)}-t{count}{PROGRAM}")

    def record(self, key: Key) -> dict[str, Any]:
        """Return what was found out before about something with this key; empty if nothing."""
        name = f"{_name(key)}{RECORD}"
        for place in self._places():
            with self._rejecting(name):
                data = place.read(name)
                if data is not None:
                    return _record(*unpacked(data), key)
        return {}

    def keep_record(self, key: Key, record: Mapping[str, Any]) -> None:
        """Keep what was found out: JSON values by name."""
        if self._own is not None:
            data = json.dumps(dict(record), sort_keys=True).encode()
            self._own.write(f"{_name(key)}{RECORD}", packed_of(key, {}, data))

    def _places(self) -> Iterator["OwnFiles | VouchedFiles"]:
        if self._vouched is not None:
            yield self._vouched
        if self._own is not None:
            yield self._own

    @contextlib.contextmanager
    def _rejecting(self, name: str) -> Iterator[None]:
        try:
            yield
        except Rejected as error:
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


def _name(key: Key) -> str:
    return hashlib.sha256(_canonical(key)).hexdigest()


def _canonical(key: Key) -> bytes:
    return json.dumps(dict(key), sort_keys=True, separators=(",", ":")).encode()


def _nearest(wanted: int, counts: list[int]) -> list[int]:
    return sorted(counts, key=lambda count: (abs(count - wanted), count))


def _expect_key(header: Mapping[str, Any], key: Key) -> None:
    found = header.get("key")
    if not isinstance(found, dict) or _canonical(found) != _canonical(key):
        differ = sorted(k for k in key if not isinstance(found, dict) or found.get(k) != key[k])
        raise Rejected(f"it is of another {', '.join(differ) or 'key'}")


def _executable(header: Mapping[str, Any], data: bytes, key: Key, threads: int) -> Executable:
    _expect_key(header, key)
    fallback, dependent = header.get("fallback"), header.get("data_dependent")
    if header.get("threads") != threads or not isinstance(dependent, bool):
        raise Rejected("its header says something else than its name")
    if not isinstance(fallback, str):
        raise Rejected("its header does not say what it was made from")
    return Executable(data, threads, dependent, fallback)


def _expect_instructions(data: bytes, key: Key) -> None:
    """Refuse a program of a CPU that this machine's may not be able to run: it would end by SIGILL."""
    if key.get("platform") != "cpu":
        return
    needed, here = required_features(data), cpu_features()
    if needed is None or here is None:
        raise Rejected("it is not known which instructions it needs, or this CPU has")
    if not needed <= here:
        raise Rejected(f"it needs {', '.join(sorted(needed - here)[:5])}, which this CPU lacks")


def _record(header: Mapping[str, Any], data: bytes, key: Key) -> dict[str, Any]:
    _expect_key(header, key)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Rejected("expected an object of JSON, got something else")
    return found
