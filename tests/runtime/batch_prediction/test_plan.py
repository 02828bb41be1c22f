"""Which program a row takes: decided by the window's rows alone, each of them exactly once."""

import numpy as np
from hypothesis import given, strategies
from pytest import mark

from runtime.batch_prediction.plan import plan

BUCKETS = {(4,): (1, 4), (8,): (1, 2, 8)}
PLACES = strategies.lists(strategies.integers(0, 2), max_size=60)
# The first and the last kind of rows take the same programs.
SIZES = [(8,), (4,), (8,)]


def planned(places, alone=False):
    """Return the runs of rows of these kinds, as plain values."""
    runs = plan(SIZES, np.array(places, np.intp), BUCKETS, alone=alone)
    return [(run.sizes, run.batch, run.members.tolist()) for run in runs]


def test_the_largest_bucket_comes_first():
    """Rows are sorted by their programs, the largest bucket first, the rest in the smallest that holds it."""
    assert planned([0, 1] * 9) == [
        ((4,), 4, [1, 3, 5, 7]),
        ((4,), 4, [9, 11, 13, 15]),
        ((4,), 1, [17]),
        ((8,), 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        ((8,), 1, [16]),
    ]


def test_no_rows_have_no_runs():
    """A window of which no row fits runs nothing."""
    assert plan([], np.empty(0, np.intp), BUCKETS, alone=False) == []


@mark.property
@given(PLACES)
def test_each_row_runs_once_in_order(places):
    """Every row is in one run, of its own program, which it fits; rows of a program stay in order."""
    runs = planned(places)

    assert sorted(i for _, _, members in runs for i in members) == list(range(len(places)))
    for sizes, batch, members in runs:
        assert {SIZES[places[i]] for i in members} == {sizes}
        assert batch == min(b for b in BUCKETS[sizes] if b >= len(members))
    for sizes in BUCKETS:
        order = [i for own, _, members in runs for i in members if own == sizes]
        assert order == sorted(order)


@mark.property
@given(PLACES)
def test_only_the_last_run_of_a_program_is_not_full(places):
    """All runs of a program but the last take its largest bucket, full."""
    runs = planned(places)
    for sizes, buckets in BUCKETS.items():
        counts = [len(members) for own, _, members in runs if own == sizes]
        assert counts[:-1] == [buckets[-1]] * (len(counts) - 1)


@mark.property
@given(PLACES)
def test_the_kinds_of_rows_do_not_matter(places):
    """Only the sizes of a row's program count, however its rows were grouped when they were read."""
    merged = [0 if place == 2 else place for place in places]

    assert planned(places) == planned(merged)


def test_rows_that_mix_run_alone():
    """Each row runs by itself, in the smallest bucket."""
    assert planned([0, 1, 0], alone=True) == [
        ((4,), 1, [1]),
        ((8,), 1, [0]),
        ((8,), 1, [2]),
    ]
