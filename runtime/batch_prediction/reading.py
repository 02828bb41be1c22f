"""Inputs to windows of rows, from any position on."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

from runtime.batch_prediction.blocks import (
    Block,
    Columns,
    InputError,
    Misfit,
    Position,
    Reader,
    Window,
)
from runtime.batch_prediction.sources import Opener, Source
from runtime.model import Model
from runtime.signature import TensorSpec

# A window is so many of the largest batches, so that few runs of it are not full.
_BATCHES = 64
_TENSOR_BYTES = 32 << 20
_INPUT_BYTES = 16 << 20


class Limits(NamedTuple):
    """What a window has at most; a part of what decides which program a row takes.

    Attributes:
      rows: of it.
      size: bytes of the input; the row that passes it is its last.
    """

    rows: int
    size: int


def window_limits(model: Model) -> Limits:
    """Return the limits of a window, by the bundle alone."""
    longest = {axis.name: axis.sizes[-1] for axis in model.signature.axes}
    largest = max(batch for group in model.groups.values() for batch in group.programs)

    def size(specs: Sequence[TensorSpec]) -> int:
        return sum(spec.row_bytes(longest) for spec in specs)

    one = max(size(model.signature.inputs), size(model.signature.outputs), 1)
    batches = max(1, min(_BATCHES, _TENSOR_BYTES // (one * largest)))
    return Limits(largest * batches, _INPUT_BYTES)


def read_windows(
    sources: Sequence[Source],
    opener: Opener,
    start: Position,
    limits: Limits,
    limit: int | None = None,
) -> Generator[Window]:
    """Yield the windows of the inputs. A window may have rows of several inputs.

    Args:
      sources: in order.
      opener: of these.
      start: where to begin: at the beginning, or where a window ended.
      limits: of a window.
      limit: rows after which nothing more is read, counted from the first of all; None for all.
    """
    sizes = [source.size for source in sources]
    blocks: list[Block] = []
    first = row = start.row
    size = 0

    def window(file: int, mark: int, part: float) -> Window:
        known = sum(sizes)
        begun = sizes[file] if file < len(sizes) else 0
        done = (sum(sizes[:file]) + begun * part) / known if known else None
        return Window(tuple(blocks), first, Position(file, mark, row), done)

    for file in range(start.file, len(sources)):
        mark = start.mark if file == start.file else 0
        reader: Reader | None = None
        try:
            reader = opener.open(sources[file], mark)
            while limit is None or row < limit:
                left = limits.rows - (row - first)
                before = reader.mark
                block = reader.read(
                    left if limit is None else min(left, limit - row), limits.size - size
                )
                if block is None:
                    break
                blocks.append(block)
                row += block.rows
                size += _bytes(block, reader.mark - before)
                if row - first >= limits.rows or size >= limits.size:
                    yield window(
                        file, reader.mark, reader.mark / reader.total if reader.total else 0
                    )
                    blocks, first, size = [], row, 0
        except InputError as error:
            blocks.append(Misfit(sources[file].name, str(error)))
        finally:
            if reader is not None:
                reader.close()
        if limit is not None and row >= limit:
            break
    if blocks:
        yield window(len(sources), 0, 0)


def _bytes(block: Block, marks: int) -> int:
    """Return the bytes that a block counts for in a window."""
    if isinstance(block, Columns):
        return sum(
            getattr(column, "nbytes", None) or sum(map(_size, column))
            for column in block.columns.values()
        )
    return marks


def _size(value: object) -> int:
    nbytes = getattr(value, "nbytes", None)
    if nbytes is not None:
        return int(nbytes)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return len(value) if isinstance(value, str | bytes) else 8
