"""What is read of an input: blocks of rows, and windows made of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from runtime.tensors import Array


class InputError(Exception):
    """An input cannot be read at all; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lines:
    """Lines of a JSONL file, not parsed yet.

    Attributes:
      file: as it is called in messages.
      lines: without those that are empty; None for one that was too long to be read.
      numbers: of these lines, counted from 1.
    """

    file: str
    lines: Sequence[bytes | None]
    numbers: Sequence[int]

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self.lines)


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """Rows of a file that has columns.

    Attributes:
      file: as it is called in messages.
      first: place of the first row in the file, counted from 0.
      rows: of each column.
      columns: name to its rows: an array dtype[rows, ...], or where rows differ a list of arrays or
        of Python's own values; None stands for a row that has none.
      refused: place of a row to what is wrong with it already.
    """

    file: str
    first: int
    rows: int
    columns: Mapping[str, Array | list[Any]]
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Misfit:
    """A whole file that cannot be read, or does not have the columns that are needed.

    Attributes:
      file: as it is called in messages.
      reason: what is wrong with it.
    """

    file: str
    reason: str

    @property
    def rows(self) -> int:
        """Return 0: how many rows it has may not be known."""
        return 0


Block = Lines | Columns | Misfit


class Reader(Protocol):
    """Reads a file from a mark on.

    Attributes:
      mark: where the next row begins: a byte, or a number of rows; as the file's kind counts.
      total: the mark at the end; 0 where that is not known.
    """

    mark: int
    total: int

    def read(self, rows: int, size: int) -> Block | None:
        """Return the next rows; None at the end.

        Args:
          rows: at most, at least 1.
          size: bytes after which no further row is read.
        """

    def close(self) -> None:
        """Close the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """Where in the inputs a window ends.

    Attributes:
      file: index of the input that is being read.
      mark: of its reader.
      row: rows before it, in all inputs.
    """

    file: int = 0
    mark: int = 0
    row: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Rows that are planned together.

    Attributes:
      blocks: in order.
      first: the number of its first row, counted from 0 over all inputs.
      end: where the next window begins.
      done: the part of all inputs that is read then, 0 to 1; None where that is not known.
    """

    blocks: tuple[Block, ...]
    first: int
    end: Position
    done: float | None
