"""How many batches a device should have at once: measured, like all that depends on it."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from runtime.errors import DoesNotFit, ExecutionError
from runtime.model import Model

# Two at once have to be faster by this much, each time that it is tried.
GAIN = 1.15
_TRIES = 3
_TRY_S = 0.1
_MOST_RUNS = 64


def batches_at_once(model: Model) -> int:
    """Measure whether a second batch on the device makes it answer more.

    While one batch is copied there or back, laid out or taken apart, the other can be computed.
    Where computing takes all that there is, as it does on most CPUs, a second one only makes
    the first one late. Where memory is short, the second one fails.

    Args:
      model: measured.

    Returns:
      2 where that is faster, else 1.
    """
    sizes, group = max(model.groups.items())
    batch = min(group.planner.buckets, key=lambda b: group.planner.costs[b] / b)
    program, inputs = group.programs[batch], model.blank(batch, sizes)
    runs = min(_MOST_RUNS, max(2, 2 * round(_TRY_S / group.planner.costs[batch] / 2)))

    def seconds(pool: ThreadPoolExecutor) -> float:
        begin = time.perf_counter()
        for _ in pool.map(lambda _: model.run(program, inputs), range(runs)):
            pass
        return time.perf_counter() - begin

    try:
        model.check_memory(at_once=2)
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
            return 2 if gains((seconds(one), seconds(two)) for _ in range(_TRIES)) else 1
    except (DoesNotFit, ExecutionError):
        return 1


def gains(tries: Iterable[tuple[float, float]]) -> bool:
    """Say whether two at once are worth it.

    Args:
      tries: seconds for the same runs one at a time and two at a time, measured in turns.
    """
    return all(one >= GAIN * two for one, two in tries)
