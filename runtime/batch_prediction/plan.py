"""Which program each row of a window takes. Pure functions of the rows' sizes alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runtime.buckets import pick
from runtime.staging import Sizes
from runtime.tensors import Array


class Run(NamedTuple):
    """One run of a program.

    Attributes:
      sizes: the program's size of each bucketed axis.
      batch: the program's bucket.
      members: int[n], the rows that it answers, 1 <= n <= batch, by their place in the window.
    """

    sizes: Sizes
    batch: int
    members: Array


def plan(
    sizes: Sequence[Sizes], places: Array, buckets: Mapping[Sizes, Sequence[int]], *, alone: bool
) -> list[Run]:
    """Plan the runs that answer the rows of a window.

    The plan follows from the rows alone, never from run times or from what ran before, so that a
    window that is computed again gets the same bytes. Rows are sorted by the sizes of their
    programs; rows of one program stay in their order. Each run takes the largest bucket, the rest
    of a program's rows the smallest that holds them.

    Args:
      sizes: the kinds of rows there are: for each the sizes of the program that takes it.
      places: int[n], the kind of each row.
      buckets: the batch sizes of the programs of each sizes, increasing.
      alone: whether each row runs by itself, as rows that depend on each other have to.

    Returns:
      The runs; each row is in exactly one.
    """
    programs = sorted(set(sizes))
    ranks = np.array([programs.index(own) for own in sizes], np.intp)
    ranked = ranks[places] if len(places) else np.empty(0, np.intp)
    order = np.argsort(ranked, kind="stable")
    ends = np.searchsorted(ranked[order], np.arange(len(programs)), side="right")
    runs = []
    start = 0
    for own, end in zip(programs, ends.tolist(), strict=True):
        limit = 1 if alone else buckets[own][-1]
        for begin in range(start, end, limit):
            members = order[begin : min(begin + limit, end)]
            batch = pick(len(members), buckets[own])
            assert batch is not None  # noqa: S101 (the largest holds them)
            runs.append(Run(own, batch, members))
        start = end
    return runs
