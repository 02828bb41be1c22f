"""Stages on threads of their own: order kept, memory bounded, ends and errors passed on."""

import threading

from pytest import mark, raises

from runtime.batch_prediction.pipeline import ahead, mapped


def test_items_keep_their_order():
    """What several stages hand on arrives in order, and ends."""
    items = ahead(mapped(lambda x: x * x, ahead(iter(range(50)), "read"), 3), "map")

    assert list(items) == [x * x for x in range(50)]


def test_a_stage_runs_ahead_no_further_than_its_queue():
    """With a queue of two and one item in hand, no fourth item is taken before one is consumed."""
    taken = []
    third = threading.Event()

    def items():
        for i in range(10):
            taken.append(i)
            if i == 3:
                third.set()
            yield i

    found = ahead(items(), "read", depth=2)
    assert next(found) == 0
    assert third.wait(60)
    assert taken == [0, 1, 2, 3]
    found.close()


def test_an_error_arrives_behind_what_was_before_it():
    """The consumer gets the items first, then the error itself."""

    def items():
        yield 1
        raise ValueError("broken")

    found = ahead(items(), "read")
    assert next(found) == 1
    with raises(ValueError, match="broken"):
        next(found)


@mark.parametrize("stages", [1, 2])
def test_closing_the_last_stage_closes_the_first(stages):
    """When the consumer stops, the source is closed on its thread, so that its file is."""
    closed = threading.Event()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.set()

    found = items()
    for _ in range(stages):
        found = ahead(found, "stage")
    next(found)
    found.close()

    assert closed.wait(60)


def test_an_error_of_a_function_ends_the_map():
    """The first item that fails ends the stage with its error, after the items before it."""
    found = mapped(lambda x: 1 // x, iter([1, 0, 1]), 1)

    assert next(found) == 1
    with raises(ZeroDivisionError):
        next(found)
