"""How long programs run, by which rows are then planned: measured in turns, and smoothed."""

import math
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

# Each program has so many turns, none much longer than this. One that takes much longer by itself
# has one.
_TURNS = 2
_TURN_S = 0.015
_SLOW_S = 0.1
_MAX_RUNS = 50  # in a turn


def run_times(
    batches: Iterable[int], prepare: Callable[[int], Callable[[], object]]
) -> dict[int, float]:
    """Return the seconds that the program of each batch runs.

    They have turns: what slows the machine for a moment slows all.

    Args:
      batches: sizes of the programs.
      prepare: makes inputs for a batch, and returns what runs its program on them.
    """
    costs = dict.fromkeys(batches, math.inf)
    for _ in range(_TURNS):
        for batch in costs:
            if _SLOW_S < costs[batch] < math.inf:
                continue  # once is enough, smoothed with the others
            costs[batch] = min(costs[batch], _seconds(prepare(batch)))
    return _smoothed(costs) if max(costs.values()) > _TURN_S else costs


def _seconds(run: Callable[[], object]) -> float:
    """Time one run: the best of those that fit into a turn, at least one."""
    best, spent = math.inf, 0.0
    for _ in range(_MAX_RUNS):
        begin = time.perf_counter()
        run()
        taken = time.perf_counter() - begin
        best, spent = min(best, taken), spent + taken
        if spent > _TURN_S:
            break
    return best


def _smoothed(costs: Mapping[int, float]) -> dict[int, float]:
    """Return run times as a + b·rows, by least squares of the relative errors.

    A single run can be several times off; a plan that follows it would be as well.
    """
    if len(costs) < 3:
        return dict(costs)
    rows = np.array(list(costs), float)
    seconds = np.array(list(costs.values()))
    design = np.stack([1 / seconds, rows / seconds], axis=1)
    (base, slope), *_ = np.linalg.lstsq(design, np.ones(len(rows)), rcond=None)
    if base < 0 or slope <= 0:
        return dict(costs)
    return {batch: float(base + slope * batch) for batch in costs}
