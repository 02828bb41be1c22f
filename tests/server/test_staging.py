"""Tasks laid out for a program, and its outputs cut back to each."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from pytest import mark

from runtime.signature import Axis, Signature, TensorSpec
from server.batching import Batch, Task
from server.staging import stage, unstage
from tests.server.fakes import ECHO, SUM


def batch_of(bucket, *tasks, sizes=()):
    """Make a batch as the queue does."""
    return Batch(sizes, bucket, tasks, sum(task.rows for task in tasks))


def rows_task(rows):
    """Make a task of `SUM`."""
    array = np.array(rows, np.float32)
    return Task(len(rows), (), ((array,),), 0.0)


def ids_task(ids, mask=None):
    """Make a task of `ECHO`, without a mask unless one is given."""
    ids = np.array(ids, np.int32)
    mask = None if mask is None else np.array(mask, np.int32)
    return Task(len(ids), (ids.shape[1],), ((ids, mask),), 0.0)


def test_rows_lie_in_order_and_padding_repeats_the_last():
    """A program gets the tasks' rows one after the other, then the last real row again."""
    batch = batch_of(4, rows_task([[1, 2]]), rows_task([[3, 4], [5, 6]]))

    (x,) = stage(SUM, batch)

    assert x.dtype == np.float32
    assert x.tolist() == [[1, 2], [3, 4], [5, 6], [5, 6]]


def test_a_full_batch_is_not_padded():
    """Rows that fill the bucket are all there is in it."""
    batch = batch_of(3, rows_task([[1, 2]]), rows_task([[3, 4], [5, 6]]))

    (x,) = stage(SUM, batch)

    assert x.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_an_array_that_fits_as_it_is_is_not_copied():
    """A lone task that fills its bucket goes to the program as it came, on every axis."""
    rows = rows_task([[1, 2], [3, 4]])
    ids = ids_task([[1, 2, 3, 4]], [[1, 1, 1, 0]])

    (x,) = stage(SUM, batch_of(2, rows))
    staged = stage(ECHO, batch_of(1, ids, sizes=(4,)))

    assert x is rows.payload[0][0]
    assert staged[0] is ids.payload[0][0]
    assert staged[1] is ids.payload[0][1]


def test_staging_leaves_the_tasks_arrays_alone():
    """What a caller sent is only read."""
    tasks = [ids_task([[1, 2]]), ids_task([[3, 4, 5]], [[1, 1, 1]])]
    for array in (a for task in tasks for a in task.payload[0] if a is not None):
        array.flags.writeable = False

    ids, _ = stage(ECHO, batch_of(4, *tasks, sizes=(4,)))

    assert ids.flags.writeable


def test_tasks_of_several_lengths_share_a_program():
    """Shorter rows are filled with the input's pad value, a mask that was left out with 1 and 0."""
    short, long = ids_task([[1, 2]]), ids_task([[3, 4, 5]], [[1, 1, 0]])

    ids, mask = stage(ECHO, batch_of(4, short, long, sizes=(4,)))

    assert ids.tolist() == [[1, 2, 9, 9], [3, 4, 5, 9], [3, 4, 5, 9], [3, 4, 5, 9]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert (ids.dtype, mask.dtype) == (np.int32, np.int32)


def test_a_mask_that_was_left_out_of_a_full_task_is_all_ones():
    """A task that needs no padding needs no zero in its mask."""
    _, mask = stage(ECHO, batch_of(1, ids_task([[1, 2, 3, 4]]), sizes=(4,)))

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
    tasks = [
        Task(1, (1,), ((np.array([[7]], np.int32), np.array([1])),), 0.0),
        Task(1, (2,), ((np.array([[8, 8]], np.int32), np.array([2])),), 0.0),
    ]

    ids, kind = stage(both, batch_of(4, *tasks, sizes=(4,)))

    assert ids[:, 0].tolist() == [7, 8, 8, 8]
    assert kind.tolist() == [1, 2, 2, 2]


def test_each_task_gets_its_rows_cut_to_its_own_length():
    """Padding of the batch and of every axis stays behind; an axis that is fixed stays whole."""
    batch = batch_of(4, ids_task([[1, 2]]), ids_task([[3, 4, 5], [6, 7, 8]]), sizes=(4,))
    echo, total = np.arange(16).reshape(4, 4), np.arange(4)

    first, second = unstage(ECHO, batch, (echo, total))

    assert [part.tolist() for part in first] == [[[0, 1]], [0]]
    assert [part.tolist() for part in second] == [[[4, 5, 6], [8, 9, 10]], [1, 2]]


tasks = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 8), st.booleans()), min_size=1, max_size=6
)


@mark.property
@given(tasks, st.integers(0, 3))
def test_every_task_gets_its_own_rows_back(shapes, spare):
    """Through a program that echoes its input, each task gets exactly what it sent."""
    numbers = iter(range(10_000))
    sent = []
    for rows, length, masked in shapes:
        ids = [[next(numbers) for _ in range(length)] for _ in range(rows)]
        ids = np.array(ids, np.int32).reshape(rows, length)
        sent.append(ids_task(ids, np.ones_like(ids) if masked else None))
    size = 4 if all(length <= 4 for _, length, _ in shapes) else 8
    batch = batch_of(sum(task.rows for task in sent) + spare, *sent, sizes=(size,))

    ids, mask = stage(ECHO, batch)
    answers = unstage(ECHO, batch, (ids, (ids * mask).sum(axis=1)))

    assert ids.shape == mask.shape == (batch.bucket, size)
    for task, (echo, total) in zip(sent, answers, strict=True):
        assert echo.tolist() == task.payload[0][0].tolist()
        assert total.tolist() == task.payload[0][0].sum(axis=1).tolist()
