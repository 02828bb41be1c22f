"""The few runs that show whether rows depend on each other, with programs that are functions."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, param

from runtime.rows import Mixing, find_mixing
from runtime.screening import FEW, count_screens, screen
from runtime.signature import TensorSpec
from tests.runtime.test_rows import (
    ROWS,
    X,
    beside,
    by_position,
    less_the_last_row,
    less_the_mean,
    routed,
    routed_to_two,
    row_by_row,
    weighted,
    where_no_other_is_not_finite,
    within_blocks,
)

IDS = TensorSpec(name="ids", dtype="int32", shape=("_", 3), minimum=0, maximum=9)


def filled(batch, distinct):
    """Fill a batch with some rows in a cycle, as those of a golden do."""
    return (np.take(ROWS[:distinct], range(batch), axis=0, mode="wrap"),)


def screened(function, batch=8, distinct=4, **options):
    """Screen a function of one input as a program of one batch size."""
    rows = filled(batch, distinct)
    return screen(lambda inputs: (function(*inputs),), [X], ["y"], rows, f"b{batch}", **options)


def shown_by(is_kind, size):
    """Let a row of one kind change the answers of its block."""

    def function(x):
        out = x.copy()
        for start in range(0, len(x), size):
            block = slice(start, start + size)
            if is_kind(x[block]).all(axis=1).any():
                out[block] += 1
        return out

    return function


KINDS = {
    "nan": np.isnan,
    "lowest": lambda x: x < -1e38,
    "largest": lambda x: x > 1e38,
    "zeros": lambda x: x == 0,
}


@mark.parametrize("distinct", [1, 4, 16])
@mark.parametrize("batch", [8, 9, 16, 24])
def test_independent_rows_are_found_clean(batch, distinct):
    """
    A function that answers each row from itself alone shows no sign.
    """
    assert screened(row_by_row, batch, distinct) is None


@mark.parametrize("distinct", [1, 4, 16])
@mark.parametrize("batch", [8, 9, 16, 24])
@mark.parametrize(
    "function",
    [
        less_the_mean,
        less_the_last_row,
        where_no_other_is_not_finite,
        by_position,
        routed_to_two,
        beside(1),
        within_blocks(4),
        *(param(shown_by(is_kind, 24), id=kind) for kind, is_kind in KINDS.items()),
    ],
)
def test_whatever_lets_a_row_see_another_is_a_sign(function, batch, distinct):
    """
    Batch statistics, neighbours, places, routing with a capacity and each kind of row are seen.
    """
    assert screened(function, batch, distinct) is not None


@mark.parametrize("room", [1, 8, 30, 31])
def test_routing_that_leaves_out_the_last_copy_is_a_sign(room):
    """
    Copies fill a batch to its last place, so that a router with room for all but one is seen.
    """
    found = screened(routed(room), 32)

    assert found is not None
    assert found.cause in ("copies", "position")


@mark.parametrize("kind", KINDS)
def test_each_block_of_a_large_batch_has_rows_of_each_kind(kind):
    """
    Rows that answer for half a batch alone are seen as those are that answer for all of it.
    """
    assert screened(shown_by(KINDS[kind], 16), 32) is not None


@st.composite
def programs(draw):
    """Draw a batch that is screened, and a function that may mix its rows."""
    batch = draw(st.integers(FEW + 1, len(ROWS)))
    size = st.integers(0, batch - 1)
    terms = st.lists(st.tuples(size, st.sampled_from([-2.0, 0.5])), max_size=1)
    weights = st.lists(terms, min_size=batch, max_size=batch).map(weighted)
    sizes = size.map(lambda n: n + 1)
    kinds = [weights, size.map(beside), sizes.map(within_blocks), sizes.map(routed)]
    return batch, draw(st.integers(2, batch)), draw(st.one_of(*kinds))


@mark.property
@given(programs())
def test_screening_finds_whatever_the_full_probe_finds(program):
    """
    Where a run for each cause finds that rows depend on each other, the few runs do.
    """
    batch, distinct, function = program

    full = find_mixing(
        lambda inputs: (function(*inputs),), [X], ["y"], filled(batch, distinct), f"b{batch}"
    )

    assert not full or screened(function, batch, distinct) is not None


@mark.parametrize("batch", [9, 12, 15, 18, 30])
def test_rows_that_another_at_any_distance_changes_are_seen(batch):
    """
    No distance, not even one that repeats the golden's rows, leaves only rows beside rows.
    """
    for distance in range(1, batch):
        change = beside(distance)
        full = find_mixing(
            lambda inputs, change=change: (change(*inputs),), [X], ["y"], filled(batch, 3), "b"
        )
        assert not full or screened(change, batch, 3) is not None


@mark.parametrize(("inputs", "batch", "runs"), [([X], 8, 3), ([X], 16, 2), ([IDS], 8, 2)])
def test_runs_are_as_many_as_were_counted(inputs, batch, runs):
    """
    A batch whose answers are known is not run, and no other one twice.
    """
    rows = (np.arange(batch * 3).reshape(batch, 3).astype(inputs[0].dtype) % 7,)
    seen = []

    def look(arrays):
        seen.append(arrays[0].tobytes())
        return arrays

    assert screen(look, inputs, ["y"], rows, "b", answers=rows) is None

    assert len(seen) == len(set(seen)) == runs == count_screens(inputs, batch)
    assert rows[0].tobytes() not in seen


def test_rows_that_were_not_run_are_run_first():
    """
    Without known answers the rows themselves are one more batch.
    """
    seen = []

    def look(x):
        seen.append(x.tobytes())
        return x

    assert screened(look) is None
    assert len(seen) == count_screens([X], 8) + 1
    assert seen[0] == filled(8, 4)[0].tobytes()


def test_known_answers_are_what_others_are_held_against():
    """
    A program that answers rows otherwise than when goldens were checked is a sign.
    """
    (rows,) = filled(8, 8)

    found = screened(row_by_row, distinct=8, answers=(row_by_row(rows) + np.float32(1),))

    assert found is not None


@mark.parametrize("function", [row_by_row, less_the_mean])
def test_several_runs_at_once_find_the_same(function):
    """
    A pool of threads runs the batches, and what is found does not depend on which ends first.
    """
    with ThreadPoolExecutor(4) as pool:
        assert screened(function, each=pool.map) == screened(function)


def test_the_largest_sign_is_returned():
    """
    Of several signs the largest change is returned, with its output and place.
    """

    def more_below(x):
        return np.arange(8, dtype=np.float32)[:, None] * np.isnan(x).any() + np.zeros_like(x)

    found = screened(more_below, distinct=8)

    assert found == Mixing("b8", "y", 4, "mates", 4.0)
    assert str(found) == "b8, output 'y': row 4 changed by 4 when it moved among other rows"


def test_rows_are_left_alone():
    """
    The rows that are screened are not written to.
    """
    rows = filled(8, 4)
    before = rows[0].copy()

    screen(lambda inputs: inputs, [X], ["y"], rows, "b8")

    assert (rows[0] == before).all()
