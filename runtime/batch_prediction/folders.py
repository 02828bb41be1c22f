"""A folder of files, each a row of a raw input: texts, or what else the bundle prepares."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.batch_prediction.blocks import Columns

# A larger file is refused without being read.
MAX_FILE_BYTES = 64 << 20
# Files that are brought here together, from where that takes time.
_TOGETHER = 64


class FolderReader:
    """Reads the files of a folder in the order of their names; see `Reader`.

    The key of a row is its file's name.

    Args:
      files: path below the folder, and bytes, of each file.
      bring: makes files readable here; called with some of these paths, returns a local path for each,
        and whether these are copies to be removed.
      name: of the folder in messages.
      column: the raw input that they are.
      key: the column that has their names.
      mark: files to pass over.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, int]],
        bring: Callable[[Sequence[str]], tuple[Sequence[Path], bool]],
        name: str,
        column: str,
        key: str,
        mark: int = 0,
    ) -> None:
        self.mark = mark
        self.total = len(files)
        self.names = (column, key)
        self._files = files
        self._bring = bring
        self._name = name
        self._column = column
        self._key = key

    def read(self, rows: int, size: int) -> Columns | None:
        """Return the next files; see `Reader`."""
        first = self.mark
        keys: list[str] = []
        planned = 0
        refused: dict[int, str] = {}
        for key, own in self._files[first : first + min(rows, _TOGETHER)]:
            if keys and planned >= size:
                break
            if own > MAX_FILE_BYTES:
                refused[len(keys)] = f"expected a file of at most {MAX_FILE_BYTES} bytes, got {own}"
            else:
                planned += own
            keys.append(key)
        if not keys:
            return None
        self.mark += len(keys)
        wanted = [key for i, key in enumerate(keys) if i not in refused]
        paths, copies = self._bring(wanted)
        there = dict(zip(wanted, paths, strict=True))
        values: list[Any] = [
            _contents(there[key], i, refused) if key in there else b"" for i, key in enumerate(keys)
        ]
        if copies:
            for path in paths:
                path.unlink(missing_ok=True)
        columns: dict[str, Any] = {self._column: values, self._key: keys}
        return Columns(self._name, first, len(keys), columns, refused)

    def close(self) -> None:
        """Nothing is open."""


def _contents(path: Path, row: int, refused: dict[int, str]) -> bytes:
    """Return the bytes of a file; none where the row is refused."""
    try:
        return path.read_bytes()
    except OSError as error:
        refused[row] = f"expected a file that can be read, got {error.strerror}"
        return b""
