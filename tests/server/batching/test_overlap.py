"""How many concurrent batches a device should have."""

import threading

import numpy as np
from pytest import mark

from runtime import DoesNotFit, ExecutionError
from server.batching.overlap import concurrent_batches, is_faster
from tests.server.fakes import FakeModel


@mark.parametrize(
    ("tries", "worth"),
    [
        ([(1.0, 0.6), (1.0, 0.7), (1.0, 0.8)], True),
        ([(1.0, 0.6), (1.0, 0.95), (1.0, 0.6)], False),
        ([(1.0, 1.0)], False),
        ([(1.0, 1.3)], False),
    ],
)
def test_two_at_once_have_to_be_faster_each_time(tries, worth):
    """One measurement without a gain is enough to keep one batch at a time."""
    assert is_faster(tries) is worth


def test_the_bucket_that_answers_most_is_tried_on_a_legal_batch():
    """What is measured is what a loaded device runs: full batches of the best bucket."""
    model = FakeModel(buckets=(1, 4, 16), costs={1: 9e4, 4: 1e5, 16: 9e5})
    model.blank = lambda rows, _: (np.zeros((rows, 2), np.float32),)

    assert concurrent_batches(model) in (1, 2)
    assert {bucket for bucket, _ in model.ran} == {4}


def test_two_that_do_not_fit_are_not_tried(monkeypatch):
    """Where memory is short for two batches of the largest bucket, there is one at a time."""

    def refuse(at_once):
        raise DoesNotFit(f"expected room for {at_once}")

    model = FakeModel()
    model.blank = lambda rows, _: (np.zeros((rows, 2), np.float32),)
    monkeypatch.setattr(model, "check_memory", refuse)

    assert concurrent_batches(model) == 1
    assert model.ran == []


def test_two_that_fail_together_run_one_by_one():
    """A device that runs one batch, and has no memory for a second beside it, is given one."""
    model, threads = FakeModel(), []
    model.blank = lambda rows, _: (np.zeros((rows, 2), np.float32),)

    def before(_):
        threads.append(threading.get_ident())
        if threads[-1] != threads[0]:
            raise ExecutionError("RESOURCE_EXHAUSTED: out of memory")

    model.before = before
    assert concurrent_batches(model) == 1
    assert len(set(threads)) > 1
