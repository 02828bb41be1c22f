"""Inputs by their names: files, folders and objects of a store, each to a reader of its rows."""

import contextlib
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runtime.batch_prediction.arrays import NpzReader, SafetensorsReader
from runtime.batch_prediction.blocks import InputError, Reader
from runtime.batch_prediction.fields import Fields, expect_arrays, expect_columns, wanted_columns
from runtime.batch_prediction.folders import FolderReader
from runtime.batch_prediction.jsonl import LineReader
from runtime.batch_prediction.places import STDIN, CloudPlace, Place, place_of
from runtime.errors import nearest
from runtime.model import Model

FORMATS = ("jsonl", "parquet", "arrow", "npz", "safetensors", "files")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".npz": "npz",
    ".safetensors": "safetensors",
}


class SourceError(Exception):
    """Inputs are not what a run can begin with; the message says why."""


class Source(NamedTuple):
    """An input that is read from its first row to its last.

    Attributes:
      name: as it is called in messages.
      format: one of FORMATS.
      place: of the file, or of the folder; None for stdin.
      path: of the file below the place; "" where the place is the folder that is read.
      size: bytes; 0 where that is not known.
      stamp: changes when the input does.
      files: of a folder, path below it and bytes of each.
    """

    name: str
    format: str
    place: Place | None
    path: str = ""
    size: int = 0
    stamp: str = ""
    files: tuple[tuple[str, int], ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return what shows that this is the input that it was."""
        return {"name": self.name, "format": self.format, "bytes": self.size, "stamp": self.stamp}


def find_sources(names: Sequence[str], format_: str | None) -> list[Source]:
    """Return the inputs that names mean, in their order; files of a folder by their names.

    Args:
      names: paths, `gs://…`, or `-` for stdin.
      format_: of all inputs; None for what the ends of their names say.

    Raises:
      SourceError: there is none of such a name, or it is not known how to read it.
      FetchError: the store refuses.
    """
    sources = [source for name in names for source in _found(name, format_)]
    if names.count(STDIN) > 1:
        raise SourceError("input -: expected stdin once, got it twice")
    if any(s.format in ("parquet", "arrow") for s in sources):
        expect_pyarrow("Parquet and Arrow files")
    return sources


def expect_pyarrow(what: str) -> None:
    """Raise SourceError where the library for Parquet is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise SourceError(
            f"{what}: need pyarrow, which is not installed; pip install 'hloserve[parquet]'"
        )


def _found(name: str, format_: str | None) -> list[Source]:
    if name == STDIN:
        if format_ not in (None, "jsonl"):
            raise SourceError(f"input -: expected jsonl, got {format_}")
        return [Source("stdin", "jsonl", None)]
    try:
        place, path = place_of(name)
    except ValueError as error:
        raise SourceError(f"input: {error}") from None
    with _explained(name):
        found = place.find(path)
        if found is not None:
            kind = format_ or _SUFFIXES.get(Path(path).suffix.lower())
            if kind is None or kind == "files":
                raise SourceError(
                    f"input {name}: expected a file that ends in {', '.join(_SUFFIXES)}, or a folder, got "
                    f"{path!r}; pass --input-format"
                )
            return [Source(name, kind, place, path, *found)]
        folder = place.below(path)
        files = {file: info for file, info in folder.files().items() if _is_data(file)}
    if not files:
        raise SourceError(
            f"input {name}: expected a file or a folder with files, got none{_beside(place, name)}"
        )
    return _of_folder(name, folder, files, format_)


def _beside(place: Place, name: str) -> str:
    """Return the advice that names the file nearest to one of this machine that is not there."""
    path = Path(name)
    if isinstance(place, CloudPlace) or path.exists() or not path.parent.is_dir():
        return ""
    return nearest(path.name, [file.name for file in path.parent.iterdir()])


def _of_folder(
    name: str, folder: Place, files: dict[str, tuple[int, str]], format_: str | None
) -> list[Source]:
    kinds = {file: _SUFFIXES.get(Path(file).suffix.lower()) for file in files}
    known = {kind for kind in kinds.values() if kind is not None}
    if format_ == "files" or (format_ is None and not known):
        stamp = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
        listed = tuple((file, files[file][0]) for file in sorted(files))
        size = sum(own for _, own in listed)
        return [Source(name, "files", folder, "", size, stamp, listed)]
    other = next((file for file, kind in sorted(kinds.items()) if kind is None), None)
    if format_ is None and (other is not None or len(known) > 1):
        got = other if other is not None else ", ".join(sorted(known))
        raise SourceError(
            f"input {name}: expected files of one format, got {got} as well; pass --input-format"
        )
    return [
        Source(
            f"{name.rstrip('/')}/{file}", format_ or str(kinds[file]), folder, file, *files[file]
        )
        for file in sorted(files)
    ]


def _is_data(file: str) -> bool:
    """Whether a file of a folder is no marker or hidden file, as Spark and others leave them."""
    return not any(part.startswith((".", "_")) for part in file.split("/"))


@contextlib.contextmanager
def _explained(name: str) -> Any:
    try:
        yield
    except OSError as error:
        raise SourceError(f"input {name}: {error.strerror}") from None


class Opener:
    """Opens inputs for reading.

    Args:
      model: that they are for.
      fields: that are no inputs.
      scratch: a directory for copies of objects.
      warn: called with a sentence about columns that are not read.
    """

    def __init__(
        self, model: Model, fields: Fields, scratch: Path, warn: Callable[[str], object]
    ) -> None:
        self._model = model
        self._fields = fields
        self._scratch = scratch
        self._warn = warn
        self._wanted = wanted_columns(model, fields)
        self._warned: set[tuple[str, ...]] = set()

    def open(self, source: Source, mark: int) -> Reader:
        """Open an input at a mark.

        Raises:
          InputError: it cannot be read.
        """
        if source.format == "files":
            return self._folder(source, mark)
        if source.format == "jsonl":
            if source.place is None:
                return LineReader(sys.stdin.buffer, source.name)
            with _readable(source):
                path = self._local(source)
                lines = LineReader(path.open("rb"), source.name, source.size)
            self._let_go(source, path)
            lines.skip_to(mark)
            return lines
        path = self._local(source)
        reader: NpzReader | SafetensorsReader | Any
        with _readable(source):
            if source.format == "npz":
                reader = NpzReader(path, source.name, self._wanted, mark)
            elif source.format == "safetensors":
                reader = SafetensorsReader(path, source.name, self._wanted, mark)
            else:
                from runtime.batch_prediction.arrow import ArrowReader

                signature, preparer = self._model.signature, self._model.preparer
                raw = preparer.raw_names if preparer is not None else ()
                reader = ArrowReader(path, source.name, self._wanted, signature, raw, mark)
        self._let_go(source, path)
        try:
            unread = expect_columns(
                source.name, reader.names, reader.kinds, self._model, self._fields
            )
            expect_arrays(source.name, reader.kinds, self._model.signature)
        except InputError:
            reader.close()
            raise
        if unread and tuple(unread) not in self._warned:
            self._warned.add(tuple(unread))
            self._warn(f"{source.name}: columns that are not read: {', '.join(map(repr, unread))}")
        return reader

    def _local(self, source: Source) -> Path:
        assert source.place is not None  # noqa: S101 (stdin is read above)
        [path] = source.place.bring([source.path], self._scratch)
        return path

    def _let_go(self, source: Source, path: Path) -> None:
        """Remove the copy of an object that is open by now."""
        if isinstance(source.place, CloudPlace):
            path.unlink()

    def _folder(self, source: Source, mark: int) -> FolderReader:
        place, preparer = source.place, self._model.preparer
        names = preparer.expected_names if preparer is not None else ()
        required = [n for n in names if preparer is None or n not in preparer.optional_names]
        if (
            place is None
            or preparer is None
            or len(required) != 1
            or required[0] not in preparer.raw_names
        ):
            inputs = required or [spec.name for spec in self._model.signature.inputs]
            raise InputError(
                f"{source.name}: expected a bundle that takes one text or image for each file, got one "
                f"that takes {', '.join(map(repr, inputs))}"
            )

        def bring(files: Sequence[str]) -> tuple[Sequence[Path], bool]:
            return place.bring(files, self._scratch), isinstance(place, CloudPlace)

        return FolderReader(source.files, bring, source.name, required[0], self._fields.key, mark)


@contextlib.contextmanager
def _readable(source: Source) -> Any:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{source.name}: expected a file that can be read, got {error.strerror}"
        ) from None
