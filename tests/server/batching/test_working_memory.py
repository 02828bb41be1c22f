"""Memory that threads take to prepare raw inputs is a part of the memory budget."""

import threading

from pytest import raises

from server.batching.memory_budget import MemoryBudget
from server.batching.working_memory import FREE_BYTES, WorkingMemory
from server.errors import Overloaded

SOME = 2 * FREE_BYTES


def test_what_threads_take_is_counted():
    """Less of the budget is available to bodies while an image is decoded, and all of it again afterwards."""
    budget = MemoryBudget(SOME + 100)
    memory = WorkingMemory(budget)

    with memory.taken(SOME):
        budget.acquire(100)
        with raises(Overloaded):
            budget.acquire(1)

    budget.acquire(SOME)


def test_small_images_are_not_counted():
    """Small amounts are not counted, and do not wait."""
    budget = MemoryBudget(1)

    with WorkingMemory(budget).taken(FREE_BYTES):
        assert budget.working == 0


def test_one_image_is_let_through_whatever_it_takes():
    """An image that is larger than the budget is decoded by itself."""
    budget = MemoryBudget(1)
    budget.acquire(1)

    with WorkingMemory(budget).taken(SOME):
        assert budget.working == SOME
    assert budget.working == 0


def test_another_one_waits_until_it_fits():
    """A second image of that size is decoded once the first one is done."""
    memory = WorkingMemory(MemoryBudget(SOME))
    order = []

    def second():
        with memory.taken(SOME):
            order.append("second")

    with memory.taken(SOME):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(timeout=30)

    assert order == ["first", "second"]


def test_small_images_do_not_overtake_a_large_one():
    """Later requests wait behind an image that does not fit yet, so that it gets its turn."""
    memory = WorkingMemory(MemoryBudget(2 * SOME))
    order = []

    def take(name, size):
        with memory.taken(size):
            order.append(name)

    with memory.taken(SOME):
        threads = [
            threading.Thread(target=take, args=("large", 2 * SOME)),
            threading.Thread(target=take, args=("small", SOME)),
        ]
        for count, thread in enumerate(threads, 1):
            thread.start()
            while len(memory._waiting) < count:
                threading.Event().wait(0.001)
        assert order == []
    for thread in threads:
        thread.join(timeout=30)

    assert order == ["large", "small"]


def test_an_error_gives_memory_back():
    """A damaged image releases its memory."""
    budget = MemoryBudget(SOME)

    with raises(ValueError, match="damaged"), WorkingMemory(budget).taken(SOME):
        raise ValueError("damaged")

    assert budget.working == 0
