"""Which buckets cover how many rows. Pure functions."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

# Run times of one program differ by as much from one measurement to the next.
NOISE = 1.15


def pick(size: int, sizes: Sequence[int]) -> int | None:
    """Return the smallest of `sizes` (increasing) that holds `size`, or None."""
    return next((candidate for candidate in sizes if candidate >= size), None)


class Planner:
    """Covers rows by buckets at the least cost.

    The cost of a plan is the sum of its buckets' costs. With measured run times that
    is the time the device needs; 12 rows become 8+4 or one 16, whichever is faster here.
    Of equally cheap plans the one with fewer programs wins, then the one with less padding.
    A bucket that seems slower than a larger one by less than `NOISE` counts as equal to it.

    Args:
      costs: bucket to the cost of running it once, in any unit; all positive.
      mixed: rows depend on each other, so that an answer must not follow from run times: rows
        stay together as far as a bucket holds them, in the smallest that does.

    Attributes:
      buckets: increasing.
      costs: what each costs, as it is planned by.
    """

    def __init__(self, costs: Mapping[int, float], *, mixed: bool = False) -> None:
        self.buckets = tuple(sorted(costs))
        self.costs = dict(costs)
        for smaller, larger in reversed(tuple(itertools.pairwise(self.buckets))):
            if self.costs[larger] < self.costs[smaller] <= NOISE * self.costs[larger]:
                self.costs[smaller] = self.costs[larger]
        self._mixed = mixed
        # Where every bucket weighs the same, the least weight is the fewest programs.
        self._weights = dict.fromkeys(costs, 1.0) if mixed else self.costs
        # The bucket that is cheapest for each row when it runs full; the rest of a long
        # request is covered by it until the remainder is small enough to be planned.
        self._bulk = min(self.buckets, key=lambda b: (self._weights[b] / b, -b))
        self.plan = functools.lru_cache(maxsize=1024)(self._plan)

    def cost(self, rows: int) -> float:
        """Return the cost of covering rows by the cheapest plan."""
        return sum(self.costs[bucket] for bucket in self.plan(rows))

    def with_overhead(self, cost: float) -> "Planner":
        """Return a planner for whom every run costs so much more, whatever its bucket."""
        costs = {bucket: cost + own for bucket, own in self.costs.items()}
        return Planner(costs, mixed=self._mixed)

    def single(self, rows: int) -> int:
        """Return the cheapest bucket that holds all rows, which the largest must."""
        return min((b for b in self.buckets if b >= rows), key=lambda b: (self._weights[b], b))

    def _plan(self, rows: int) -> tuple[int, ...]:
        """Return the buckets that cover `rows` >= 0 rows, the largest first.

        Every bucket but the last runs full. The plan is optimal up to four times the
        largest bucket; beyond that the bulk bucket takes the excess.
        """
        limit = 4 * self.buckets[-1]
        bulk = max(0, math.ceil((rows - limit) / self._bulk))
        best: list[tuple[float, int]] = [(0.0, 0)]  # (cost, programs) for each row count
        choice: list[int] = [0]
        for n in range(1, rows - bulk * self._bulk + 1):
            options = []
            for bucket in self.buckets:
                cost, programs = best[max(0, n - bucket)]
                options.append((cost + self._weights[bucket], programs + 1, bucket))
            cost, programs, bucket = min(options)
            best.append((cost, programs))
            choice.append(bucket)
        plan = [self._bulk] * bulk
        left = rows - bulk * self._bulk
        while left > 0:
            plan.append(choice[left])
            left -= choice[left]
        plan.sort(reverse=True)
        while 0 < rows <= sum(plan) - plan[-1]:
            plan.pop()
        return tuple(plan)
