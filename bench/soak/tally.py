"""What was asked so far, and what went wrong."""

import collections
import time


class Tally:
    """Counts by kind; over after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    def count(self, kind: str, wrong: str = "") -> None:
        self.counts[kind] += 1
        if wrong:
            self.wrong.append(f"{kind}: {wrong}")
