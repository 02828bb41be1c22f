"""Buckets: which programs cover how many rows, and how rows become a bucket's."""

import functools

import hypothesis.strategies as st
from hypothesis import example, given
from pytest import approx, mark

from runtime.buckets import NOISE, Planner, pick

# Sums of eighths are exact, so that equal costs are equal.
eighths = st.integers(1, 800).map(lambda n: n / 8)
costs = st.dictionaries(st.integers(1, 12), eighths, min_size=1, max_size=4)


def cheapest(costs, rows):
    """Find the least cost of covering rows, by trying everything."""

    @functools.cache
    def least(left):
        return (
            min((cost + least(left - b) for b, cost in costs.items()), default=0) if left > 0 else 0
        )

    return least(rows)


@mark.property
@given(costs, st.integers(0, 200))
@example({1: 1.0}, 0)
@example({8: 1.0}, 200)
def test_plan_covers_the_rows(costs, rows):
    """
    Every plan holds all rows, largest buckets first, and every bucket but the last runs full.
    """
    plan = Planner(costs).plan(rows)

    assert sum(plan) >= rows
    assert sum(plan[:-1]) < rows or plan == ()
    assert list(plan) == sorted(plan, reverse=True)
    assert set(plan) <= set(costs)


@mark.property
@given(costs, st.integers(0, 48))
def test_plan_costs_the_least(costs, rows):
    """
    Up to four times the largest bucket no other plan is cheaper by more than the noise.
    """
    rows = min(rows, 4 * max(costs))

    plan = Planner(costs).plan(rows)

    assert sum(costs[bucket] for bucket in plan) <= NOISE * cheapest(costs, rows)


def test_a_bucket_is_not_passed_over_for_noise():
    """
    A bucket that measures a little slower than the next larger one still takes its rows.
    """
    planner = Planner({8: 1.1, 16: 1.0, 32: 2.0})

    assert planner.plan(8) == (8,)
    assert planner.single(8) == 8


def test_a_larger_bucket_that_is_much_faster_is_taken():
    """
    A larger bucket that is faster by more than the noise takes a smaller one's rows.
    """
    planner = Planner({8: 2.0, 16: 1.0})

    assert planner.plan(8) == (16,)
    assert planner.single(8) == 16


@mark.property
@given(costs, st.integers(49, 2000))
def test_long_plan_wastes_little(costs, rows):
    """
    Beyond that a plan costs at most what its bulk bucket would, plus the planned remainder.
    """
    per_row = min(cost / bucket for bucket, cost in costs.items())

    plan = Planner(costs).plan(rows)

    assert sum(costs[bucket] for bucket in plan) <= per_row * rows + 2 * max(costs.values())


def test_rows_are_covered_by_what_is_faster():
    """
    Twelve rows become 8+4 or one 16, whichever this device runs faster.
    """
    assert Planner({4: 1.0, 8: 1.5, 16: 3.0}).plan(12) == (8, 4)
    assert Planner({4: 1.0, 8: 2.5, 16: 3.0}).plan(12) == (16,)


def test_what_every_run_costs_beside_its_program_favours_few_runs():
    """
    The same buckets, where each run has a price of its own, cover rows by fewer of them.
    """
    planner = Planner({8: 1.0, 16: 2.5})

    assert planner.plan(16) == (8, 8)
    assert planner.with_overhead(1.0).plan(16) == (16,)
    assert planner.plan(16) == (8, 8)


def test_fewer_programs_win_a_tie():
    """
    Of equally cheap plans the one with fewer programs is taken.
    """
    assert Planner({4: 1.0, 8: 2.0}).plan(8) == (8,)


def test_unmeasured_buckets_are_covered_by_few_programs():
    """
    Where all costs are the same, one bucket that holds everything beats several.
    """
    assert Planner({1: 1.0, 4: 1.0, 16: 1.0}).plan(3) == (4,)
    assert Planner({1: 1.0, 4: 1.0, 16: 1.0}).plan(40) == (16, 16, 16)


def test_no_rows_need_no_program():
    """
    An empty request runs nothing.
    """
    assert Planner({4: 1.0}).plan(0) == ()


def test_sum_of_costs_is_measured_time():
    """
    Costs in seconds add up to the time that the device needs.
    """
    costs = {1: 0.0001, 8: 0.0003}
    plan = Planner(costs).plan(10)

    assert sum(costs[bucket] for bucket in plan) == approx(0.0005, rel=1e-12)


def test_picking_takes_the_smallest_that_holds():
    """
    A size goes to the smallest bucket of an axis that holds it, if one does.
    """
    assert [pick(size, (4, 8)) for size in (0, 1, 4, 5, 8, 9)] == [4, 4, 4, 8, 8, None]


@mark.parametrize(
    ("rows", "plan"), [(0, ()), (1, (1,)), (3, (4,)), (4, (4,)), (8, (8,)), (16, (8, 8))]
)
def test_rows_that_depend_on_each_other_stay_together(rows, plan):
    """
    Where rows are mixed no plan splits what a bucket holds, however cheap smaller ones are.
    """
    planner = Planner({1: 1.0, 4: 2.0, 8: 100.0}, mixed=True)

    assert planner.plan(rows) == plan


def test_mixed_rows_do_not_go_to_a_larger_bucket_that_is_quicker():
    """
    The smallest bucket that holds mixed rows answers them; times still say what that takes.
    """
    planner = Planner({4: 9.0, 8: 1.0}, mixed=True)

    assert (planner.single(4), planner.cost(4)) == (4, 9.0)
    assert planner.with_overhead(1.0).single(4) == 4
    assert Planner({4: 9.0, 8: 1.0}).single(4) == 8
