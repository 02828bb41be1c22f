"""A few runs that show whether a row's answer changes with its place, or with the rows beside it.

`runtime.rows` has a run for each cause and position. That takes less for a program whose rows are
known not to meet, by the structure of the model that it was made of: only how it was compiled can
make an answer depend on more than its row. The same row gets the same answer, bit for bit, in

1. a batch of different rows, in the order of the golden that they are taken from;
2. a batch of copies of one of them, compared at every position;
3. a batch where many of them stand in other places, among rows of NaN;
4. and one where they stand among zeros, extremes and random rows.

Batches of more than `rows.ONE_BY_ONE` rows take all those of 3 and 4 at once. A row that
gets two answers is a reason to look with `runtime.rows`. Of a program that nothing else is known
of this shows less than those runs do: not what takes all others to be of one kind, for one.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from runtime.compare import largest_difference
from runtime.rows import ONE_BY_ONE, Each, Mixing, Rows, Run, is_floating, mates, same_bits
from runtime.signature import TensorSpec

# Up to here each cause and position has a run of its own, as `runtime.rows` does it: these are
# cheap, and too few rows for some to stand among others of each kind.
FEW = 7

# Where there are few others, two of them are the extremes.
_FINITE = ("extremes", "zeros", "random")


def count_screens(inputs: Sequence[TensorSpec], batch: int) -> int:
    """Return how often `screen` runs a program of this batch whose first answers are known."""
    return 1 + len(_surroundings(inputs, batch))


def screen(
    run: Run,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    rows: Rows,
    bucket: str,
    *,
    answers: Rows | None = None,
    each: Each = map,
) -> Mixing | None:
    """Return the largest sign that rows of one program depend on each other or on their place.

    Args:
      run: the program; inputs to outputs, in the signature's order.
      inputs: the signature's inputs, for dtypes and legal ranges.
      outputs: names of the outputs.
      rows: legal inputs that fill the bucket exactly, more than `FEW` rows.
      bucket: how to name it.
      answers: the program's outputs for `rows`, where it has been run on them.
      each: runs it on batches, perhaps several at once.

    Returns:
      None if every row got one answer. Otherwise the cause is `copies`, `position` for the same
      row in two places of `rows`, or `mates`.
    """
    batch = len(rows[0])
    tries = [("copies", _repeated(rows, [0] * batch), dict.fromkeys(range(batch), 0))]
    tries += [
        ("mates", *_surrounded(inputs, rows, kinds, turn))
        for turn, kinds in enumerate(_surroundings(inputs, batch))
    ]
    batches = [placed for _, placed, _ in tries]
    if answers is None:
        answers, *got = each(run, [rows, *batches])
    else:
        got = list(each(run, batches))
    found: list[Mixing] = []

    def expect_same(cause: str, position: int, first: int, after: Rows) -> None:
        for name, a, b in zip(outputs, answers, after, strict=True):
            before, now = a[first : first + 1], b[position : position + 1]
            if not same_bits(before, now):
                change = largest_difference(before, now)
                found.append(Mixing(bucket, name, position, cause, change))

    for position, first in enumerate(_firsts(rows)):
        expect_same("position", position, first, answers)
    for (cause, _, kept), after in zip(tries, got, strict=True):
        for position, first in kept.items():
            expect_same(cause, position, first, after)
    return max(found, key=lambda mixing: mixing.change, default=None)


def _surroundings(inputs: Sequence[TensorSpec], batch: int) -> list[tuple[str, ...]]:
    """Return for each run the kinds of rows that others stand among."""
    if not any(map(is_floating, inputs)):
        return [_FINITE]
    return [(*_FINITE, "nan")] if batch > ONE_BY_ONE else [("nan",), _FINITE]


def _surrounded(
    inputs: Sequence[TensorSpec], rows: Rows, kinds: Sequence[str], turn: int
) -> tuple[Rows, dict[int, int]]:
    """Return a batch where a third of the places have rows, in reversed order.

    In the first run others stand at both ends, or those might never be replaced; in the second
    they stand where rows did in the first.

    Returns:
      The batch, and which of the rows stands at each place that has one.
    """
    batch = len(rows[0])
    places = range(1, batch - 1, 3) if turn == 0 else range(0, batch, 3)
    kept = {place: batch - 1 - place for place in places}
    placed = tuple(a[::-1].copy() for a in rows)
    others = [position for position in range(batch) if position not in kept]
    own = tuple(a[:1] for a in rows)
    for i, (_, mate) in enumerate(mates(inputs, own, batch, kinds)):
        there = others[i :: len(kinds)]
        for target, replacement in zip(placed, mate, strict=True):
            target[there] = replacement[: len(there)]
    return placed, kept


def _repeated(rows: Rows, which: Sequence[int]) -> Rows:
    return tuple(np.take(a, which, axis=0) for a in rows)


def _firsts(rows: Rows) -> Iterator[int]:
    """Yield for each row the place of the first one that is the same."""
    seen: dict[bytes, int] = {}
    for position in range(len(rows[0])):
        yield seen.setdefault(b"".join(a[position].tobytes() for a in rows), position)
