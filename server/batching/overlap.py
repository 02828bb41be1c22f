"""Overlap: whether a device gains from two concurrent batches, measured at load.

It stays although a CPU never gains, as the measurement costs half a second at load: where batches
are copied to and from an accelerator, the copies and the programs can overlap.
"""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from runtime.errors import DoesNotFit, ExecutionError
from runtime.model import Model

# Two concurrent batches have to be faster by this factor, in each trial.
MIN_SPEEDUP = 1.15
_TRIALS = 3
_TRIAL_S = 0.1
_MAX_RUNS = 64


def concurrent_batches(model: Model, replicas: Sequence[Model] = ()) -> int:
    """Return how many batches a device should have at once, as measured.

    While one batch is copied, staged or unstaged, the other can be computed. Where computing
    takes every core, as it does on most CPUs, a second batch only delays the first one. Where
    memory is short, the second one fails.

    Args:
      model: measured.
      replicas: the same on further devices of its kind, which may have less memory left.

    Returns:
      2 where that is faster, else 1; 1 also where memory is short.
    """
    sizes, group = max(model.groups.items())
    batch = min(group.planner.buckets, key=lambda b: group.planner.costs[b] / b)
    program, inputs = group.programs[batch], model.blank(batch, sizes)
    runs = min(_MAX_RUNS, max(2, 2 * round(_TRIAL_S / group.planner.costs[batch] / 2)))

    def seconds(pool: ThreadPoolExecutor) -> float:
        begin = time.perf_counter()
        for _ in pool.map(lambda _: model.run(program, inputs), range(runs)):
            pass
        return time.perf_counter() - begin

    try:
        for replica in (model, *replicas):
            replica.check_memory(at_once=2)
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
            return 2 if is_faster((seconds(one), seconds(two)) for _ in range(_TRIALS)) else 1
    except (DoesNotFit, ExecutionError):
        return 1


def is_faster(trials: Iterable[tuple[float, float]]) -> bool:
    """Whether two concurrent batches are faster by `MIN_SPEEDUP` in every trial.

    Args:
      trials: seconds for the same runs one at a time and two at a time, measured in turns.
    """
    return all(one >= MIN_SPEEDUP * two for one, two in trials)
