"""Lines of JSONL, read within bounds whatever the file has."""

from typing import BinaryIO

from runtime.batch_prediction.blocks import Lines

# A longer line is refused, and passed over without being read into memory.
MAX_LINE_BYTES = 64 << 20
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


class LineReader:
    """Reads a JSONL file from a byte on.

    Args:
      file: opened; it is closed with this.
      name: as it is called in messages.
      total: bytes of the file; 0 where that is not known.
      limit: bytes of a line that is read; None for MAX_LINE_BYTES.

    Attributes:
      mark: the byte that is read next.
      total: likewise.
    """

    def __init__(
        self, file: BinaryIO, name: str, total: int = 0, *, limit: int | None = None
    ) -> None:
        self.mark = 0
        self.total = total
        self._file = file
        self._name = name
        self._limit = MAX_LINE_BYTES if limit is None else limit
        self._number = 0

    def read(self, rows: int, size: int) -> Lines | None:
        """Return the next lines; see `Reader`."""
        lines: list[bytes | None] = []
        numbers: list[int] = []
        end = self.mark + size
        while len(lines) < rows and self.mark < end:
            line = self._file.readline(self._limit + 1)
            if not line:
                break
            if self.mark == 0:
                self.mark = len(_BOM) if line.startswith(_BOM) else 0
                line = line.removeprefix(_BOM)
            self.mark += len(line)
            self._number += 1
            if len(line) > self._limit and not line.endswith(b"\n"):
                self._pass_over()
                lines.append(None)
            elif stripped := line.strip():
                lines.append(stripped)
            else:
                continue
            numbers.append(self._number)
        return Lines(self._name, lines, numbers) if lines else None

    def skip_to(self, mark: int) -> None:
        """Go on at a mark of an earlier run, counting the lines before it."""
        while self.mark < mark:
            data = self._file.read(min(_CHUNK, mark - self.mark))
            if not data:
                break
            self._number += data.count(b"\n")
            self.mark += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _pass_over(self) -> None:
        """Read to the end of a line."""
        while data := self._file.readline(_CHUNK):
            self.mark += len(data)
            if data.endswith(b"\n"):
                break
