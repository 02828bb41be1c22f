"""Rows laid out for a program, and its outputs cut back to each of their owners."""

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as arrays
from pytest import mark

from runtime.inputs import Checked
from runtime.signature import Axis, Signature, TensorSpec
from runtime.staging import count_elements, pad, stage, unstage

SUM = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("_", 2)),),
    outputs=(TensorSpec(name="total", dtype="float32", shape=("_",)),),
)
ECHO = Signature(
    inputs=(
        TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), pad=9),
        TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True),
    ),
    outputs=(
        TensorSpec(name="echo", dtype="int32", shape=("_", "seq")),
        TensorSpec(name="total", dtype="int64", shape=("_",)),
    ),
    axes=(Axis(name="seq", sizes=(4, 8)),),
)


def sum_rows(rows):
    """Make inputs of `SUM`."""
    return Checked((np.array(rows, np.float32),), len(rows), ())


def echo_rows(ids, mask=None):
    """Make inputs of `ECHO`, without a mask unless one is given."""
    ids = np.array(ids, np.int32)
    mask = None if mask is None else np.array(mask, np.int32)
    return Checked((ids, mask), len(ids), (ids.shape[1],))


def test_rows_lie_in_order_and_padding_repeats_the_last():
    """A program gets the tasks' rows one after the other, then the last real row again."""
    parts = [sum_rows([[1, 2]]), sum_rows([[3, 4], [5, 6]])]

    (x,) = stage(SUM, parts, 4, ())

    assert x.dtype == np.float32
    assert x.tolist() == [[1, 2], [3, 4], [5, 6], [5, 6]]


def test_a_full_batch_is_not_padded():
    """Rows that fill the bucket are all there is in it."""
    parts = [sum_rows([[1, 2]]), sum_rows([[3, 4], [5, 6]])]

    (x,) = stage(SUM, parts, 3, ())

    assert x.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_an_array_that_fits_as_it_is_is_not_copied():
    """A lone task that fills its bucket goes to the program as it came, on every axis."""
    rows = sum_rows([[1, 2], [3, 4]])
    ids = echo_rows([[1, 2, 3, 4]], [[1, 1, 1, 0]])

    (x,) = stage(SUM, [rows], 2, ())
    staged = stage(ECHO, [ids], 1, (4,))

    assert x is rows.arrays[0]
    assert staged[0] is ids.arrays[0]
    assert staged[1] is ids.arrays[1]


def test_staging_leaves_the_tasks_arrays_alone():
    """What a caller sent is only read."""
    parts = [echo_rows([[1, 2]]), echo_rows([[3, 4, 5]], [[1, 1, 1]])]
    for array in (a for part in parts for a in part.arrays if a is not None):
        array.flags.writeable = False

    ids, _ = stage(ECHO, parts, 4, (4,))

    assert ids.flags.writeable


def test_tasks_of_several_lengths_share_a_program():
    """Shorter rows are filled with the input's pad value, a mask that was left out with 1 and 0."""
    short, long = echo_rows([[1, 2]]), echo_rows([[3, 4, 5]], [[1, 1, 0]])

    ids, mask = stage(ECHO, [short, long], 4, (4,))

    assert ids.tolist() == [[1, 2, 9, 9], [3, 4, 5, 9], [3, 4, 5, 9], [3, 4, 5, 9]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert (ids.dtype, mask.dtype) == (np.int32, np.int32)


def test_a_mask_that_was_left_out_of_a_full_task_is_all_ones():
    """A task that needs no padding needs no zero in its mask."""
    _, mask = stage(ECHO, [echo_rows([[1, 2, 3, 4]])], 1, (4,))

    assert mask.tolist() == [[1, 1, 1, 1]]


def test_inputs_with_and_without_a_bucketed_axis_are_laid_out_alike():
    """A fixed input beside a bucketed one has its rows in the same places."""
    both = Signature(
        inputs=(
            TensorSpec(name="ids", dtype="int32", shape=("_", "seq")),
            TensorSpec(name="kind", dtype="int64", shape=("_",)),
        ),
        outputs=ECHO.outputs,
        axes=(Axis(name="seq", sizes=(4,)),),
    )
    parts = [
        Checked((np.array([[7]], np.int32), np.array([1])), 1, (1,)),
        Checked((np.array([[8, 8]], np.int32), np.array([2])), 1, (2,)),
    ]

    ids, kind = stage(both, parts, 4, (4,))

    assert ids[:, 0].tolist() == [7, 8, 8, 8]
    assert kind.tolist() == [1, 2, 2, 2]


def test_each_task_gets_its_rows_cut_to_its_own_length():
    """Padding of the batch and of every axis stays behind; an axis that is fixed stays whole."""
    parts = [echo_rows([[1, 2]]), echo_rows([[3, 4, 5], [6, 7, 8]])]
    echo, total = np.arange(16).reshape(4, 4), np.arange(4)

    first, second = unstage(ECHO, parts, (echo, total))

    assert [output.tolist() for output in first] == [[[0, 1]], [0]]
    assert [output.tolist() for output in second] == [[[4, 5, 6], [8, 9, 10]], [1, 2]]


rows_of_any_dtype = arrays.arrays(
    st.sampled_from(
        [np.bool_, np.int8, np.uint64, np.float32, np.float64, np.dtype(ml_dtypes.bfloat16)]
    ),
    arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
    elements=st.integers(0, 1),
)
some_rows = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 8), st.booleans()), min_size=1, max_size=6
)


@mark.property
@given(some_rows, st.integers(0, 3))
def test_every_task_gets_its_own_rows_back(shapes, spare):
    """Through a program that echoes its input, each task gets exactly what it sent."""
    numbers = iter(range(10_000))
    sent = []
    for rows, length, masked in shapes:
        ids = [[next(numbers) for _ in range(length)] for _ in range(rows)]
        ids = np.array(ids, np.int32).reshape(rows, length)
        sent.append(echo_rows(ids, np.ones_like(ids) if masked else None))
    size = 4 if all(length <= 4 for _, length, _ in shapes) else 8
    batch = sum(part.rows for part in sent) + spare

    ids, mask = stage(ECHO, sent, batch, (size,))
    answers = unstage(ECHO, sent, (ids, (ids * mask).sum(axis=1)))

    assert ids.shape == mask.shape == (batch, size)
    for part, (echo, total) in zip(sent, answers, strict=True):
        assert echo.tolist() == part.arrays[0].tolist()
        assert total.tolist() == part.arrays[0].sum(axis=1).tolist()


@mark.property
@given(rows_of_any_dtype, st.integers(0, 6))
def test_padding_repeats_the_last_row(rows, missing):
    """Padding is a real row, never zeros, which could make NaN where real rows do not."""
    padded = pad(rows, len(rows) + missing)

    assert (padded.shape, padded.dtype) == ((len(rows) + missing, *rows.shape[1:]), rows.dtype)
    assert padded[: len(rows)].tobytes() == rows.tobytes()
    assert all((row == rows[-1]).all() for row in padded[len(rows) :])


def test_elements_are_counted_without_masks():
    """Padding is the part of the inputs that no caller sent, of the batch and of the axes."""
    parts = [echo_rows([[1, 2]]), echo_rows([[3, 4, 5]])]

    assert count_elements(ECHO, parts, 4, (4,)) == (16, 11)
    assert count_elements(SUM, [sum_rows([[1, 2]])], 4, ()) == (8, 6)
