"""Rows that are values of Python are accepted or refused each by itself."""

import numpy as np
from hypothesis import given, strategies
from pytest import mark

from runtime.batch_prediction.values import check_values
from tests import image_files

GOOD = ([1.0, 2.0, 3.0, 4.0], {"x": np.arange(4, dtype=np.float32)}, {"x": (1, 2, 3, 4)})
BAD = {
    "nothing": (None, "input 'x': expected a value, got None"),
    "null": ([1.0, None, 3.0, 4.0], "input 'x': expected float32, got null"),
    "bytes": (b"no", "input 'x': expected float32, got bytes"),
    "text": ("no", "input 'x': expected float32, got a string"),
    "short": ([1.0, 2.0], "input 'x': expected float32[_, 4], got float32[1, 2]"),
    "double": (np.zeros(4), "input 'x': expected float32[_, 4], got float64[1, 4]"),
    "ragged": ([[1.0], [1.0, 2.0]], "input 'x': expected float32, got lists of different lengths"),
    "named": ({"y": 1}, "inputs: expected ['x'], got 'y' and no 'x'"),
}


def by_place(rows):
    """Return the first input's row of each place that fits."""
    return {
        place: row.tolist()
        for part, members in zip(rows.parts, rows.members, strict=True)
        for place, row in zip(members.tolist(), part.arrays[0], strict=True)
    }


@mark.property
@given(strategies.lists(strategies.sampled_from([0, 1, 2, *BAD]), max_size=30))
def test_a_row_does_not_depend_on_others(classifier, kinds):
    """Which rows are refused, and why, follows from each alone, wherever it stands."""
    rows = check_values([BAD[k][0] if k in BAD else GOOD[k] for k in kinds], classifier)

    assert rows.refused == {i: BAD[k][1] for i, k in enumerate(kinds) if k in BAD}
    assert sorted(by_place(rows)) == [i for i, k in enumerate(kinds) if k not in BAD]


def test_rows_of_one_form_are_checked_together(classifier):
    """However they are mixed, rows that are arrays make one part, and lists another."""
    rows = check_values([GOOD[i % 2] for i in range(20)], classifier)

    assert [part.rows for part in rows.parts] == [10, 10]
    assert [members.tolist() for members in rows.members] == [
        list(range(0, 20, 2)),
        list(range(1, 20, 2)),
    ]


values = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=3)
    | strategies.binary(max_size=3)
    | strategies.just(object)
    | strategies.just(np.zeros(4, np.float32))
    | strategies.just(np.array(["a", None], object)),
    lambda inner: (
        strategies.lists(inner, max_size=4)
        | strategies.tuples(inner)
        | strategies.dictionaries(strategies.sampled_from(["x", "text", "image", 1]), inner)
    ),
    max_leaves=6,
)


@mark.property
@given(strategies.lists(values, max_size=4))
def test_whatever_a_row_is_it_is_refused_by_itself(classifier, tagger, sentences, rows):
    """No value of Python ends the check of a batch: the row beside it is accepted."""
    for model, good in (
        (classifier, GOOD[0]),
        (tagger, {"ids": np.zeros(3, np.int32)}),
        (sentences, "the cat"),
    ):
        found = check_values([*rows, good], model)
        assert len(rows) in by_place(found)
        assert sorted([*found.refused, *by_place(found)]) == list(range(len(rows) + 1))


def test_masks_can_be_left_out_by_some_rows(tagger):
    """A row with a mask and one without may be in the same batch."""
    ids = np.ones(3, np.int32)
    rows = check_values([{"ids": ids}, {"ids": ids, "mask": ids}, {"mask": ids}], tagger)

    assert sorted(by_place(rows)) == [0, 1]
    assert rows.refused == {2: "input 'ids': expected int32[_, seq], got nothing"}


def test_a_row_of_several_inputs_has_names(sentences):
    """What has no names is a text where it is one, and not the ids of it."""
    rows = check_values(["the cat", 3, {"text": "dog"}], sentences)

    assert sorted(by_place(rows)) == [0, 2]
    assert list(rows.refused) == [1]


def test_an_image_is_the_bytes_of_a_file(pictures):
    """A path is none, nor is a file of something else."""
    red = image_files.plain(250, 0, 0)
    rows = check_values([red, {"image": red}, "red.png", {"image": b"no"}], pictures)

    assert sorted(by_place(rows)) == [0, 1]
    assert rows.refused[2] == "input 'image': expected the bytes of an image, got str"
    assert sorted(rows.refused) == [2, 3]
