"""Rows are accepted or refused each by itself."""

import numpy as np
from hypothesis import given, strategies
from pytest import mark

from runtime.batch_prediction.rows import check_columns, check_instances

GOOD = [1.0, 2.0, 3.0, 4.0]
BAD = {
    "null": ([1.0, None, 3.0, 4.0], "input 'x': expected float32, got null"),
    "text": ("no", "input 'x': expected float32, got a string"),
    "short": ([1.0, 2.0], "input 'x': expected float32[4], got [2]"),
    "ragged": ([[1.0], [1.0, 2.0]], "input 'x': expected float32, got lists of different lengths"),
    "named": ({"y": 1}, "expected 'x', got 'y'"),
}


def by_place(rows):
    """Return the first input's row of each place that fits."""
    found = {}
    for part, members in zip(rows.parts, rows.members, strict=True):
        for place, row in zip(members.tolist(), part.arrays[0], strict=True):
            found[place] = row.tolist()
    return found


def test_good_rows_go_together(classifier):
    """Where all rows fit there is one part, and each row is at its place."""
    rows = check_instances([[i, 0, 0, 0] for i in range(20)], classifier)

    assert len(rows.parts) == 1
    assert by_place(rows) == {i: [i, 0, 0, 0] for i in range(20)}
    assert rows.refused == {}


@mark.parametrize("kind", BAD)
def test_what_is_wrong_with_a_row_is_named(kind, classifier):
    """A row among others is refused with what it would be refused with by itself."""
    row, why = BAD[kind]
    rows = check_instances([GOOD, row, GOOD], classifier)

    assert rows.refused == {1: why}
    assert by_place(rows) == {0: GOOD, 2: GOOD}


@mark.property
@given(strategies.lists(strategies.sampled_from([None, *BAD]), max_size=40))
def test_a_row_does_not_depend_on_others(classifier, kinds):
    """Which rows are refused, and why, follows from each alone, wherever it stands."""
    rows = check_instances([GOOD if kind is None else BAD[kind][0] for kind in kinds], classifier)

    assert rows.refused == {i: BAD[kind][1] for i, kind in enumerate(kinds) if kind is not None}
    assert by_place(rows) == {i: GOOD for i, kind in enumerate(kinds) if kind is None}


def test_rows_that_name_inputs_and_rows_that_do_not_stand_beside_each_other(classifier):
    """A file may mix both forms, since each is a row by itself."""
    rows = check_instances([GOOD, {"x": GOOD}, GOOD], classifier)

    assert by_place(rows) == {0: GOOD, 1: GOOD, 2: GOOD}


def test_columns_are_views(classifier):
    """Columns that fit are used as they are, without a copy and without a look at single rows."""
    x = np.zeros((100, 4), np.float32)
    rows = check_columns({"x": x}, 100, classifier)

    assert len(rows.parts) == 1
    assert np.shares_memory(rows.parts[0].arrays[0], x)


def test_a_value_out_of_range_refuses_its_row(tagger):
    """Of a column only the rows that do not fit are refused."""
    ids = np.zeros((50, 4), np.int32)
    ids[[7, 8, 40], 1] = 10
    rows = check_columns({"ids": ids}, 50, tagger)

    assert rows.refused == dict.fromkeys([7, 8, 40], "input 'ids': expected values <= 9, got 10")
    assert sorted(by_place(rows)) == [i for i in range(50) if i not in (7, 8, 40)]


def test_rows_of_several_lengths_are_grouped(tagger):
    """A column of lists is grouped by length, and a row that is too long is refused."""
    ids = [np.zeros(n, np.int32) for n in (2, 3, 2, 9, 8)]
    rows = check_columns({"ids": ids}, 5, tagger)

    assert [part.sizes for part in rows.parts] == [(2,), (3,), (8,)]
    assert [members.tolist() for members in rows.members] == [[0, 2], [1], [4]]
    assert rows.refused == {3: "axis 'seq': expected at most 8, got 9"}


def test_wide_integers_pass_where_they_fit(tagger):
    """int64, which NumPy and pandas make of integers, is taken; a row beyond int32 is refused."""
    ids = np.zeros((3, 4), np.int64)
    ids[1, 0] = 2**40
    rows = check_columns({"ids": ids}, 3, tagger)

    assert rows.refused == {1: f"input 'ids': expected values of int32, got {2**40}"}
    assert {part.arrays[0].dtype.name for part in rows.parts} == {"int32"}


def test_a_text_that_is_too_long_refuses_its_row_alone(sentences):
    """Texts beside it are prepared as they are without it."""
    rows = check_instances(["cat sat", "the cat sat on a mat the cat sat", "dog"], sentences)

    assert rows.refused == {1: "input 'text': expected at most 8 tokens, got 11"}
    assert sorted(i for own in rows.members for i in own.tolist()) == [0, 2]
