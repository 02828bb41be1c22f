"""What the server counts. Written on the event loop alone, so plain numbers will do."""

import bisect
import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# OpenTelemetry's advised bounds, extended downwards: most answers take less than 5 ms.
SECONDS = (.0005, .001, .002, .005, .01, .025, .05, .075, .1, .25, .5, .75, 1.0, 2.5, 5.0, 7.5, 10.0)  # fmt: skip
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

# Why requests fail, in Triton's four words; `other` is the client's fault.
_REASONS = {
    "queue_full": "rejected",
    "draining": "rejected",
    "not_ready": "rejected",
    "canceled": "canceled",
    "deadline": "canceled",
    "internal": "backend",
    "out_of_memory": "backend",
    "non_finite_output": "backend",
}


@dataclasses.dataclass(slots=True)
class Histogram:
    """How many values lie below each bound, and their sum.

    Attributes:
      bounds: increasing.
      counts: of the values up to each bound and beyond the one before; the last, beyond all.
      sum: of the values.
    """

    bounds: Sequence[float]
    counts: list[int] = dataclasses.field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        """Begin at nothing; JSON has lists alone."""
        self.bounds = tuple(self.bounds)
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """Give the number of values."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def merge(self, other: "Histogram") -> None:
        """Count the values of another one, of the same bounds."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def buckets(self) -> list[tuple[str, float]]:
        """Give each bound, as text, with the number of values up to it."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, itertools.accumulate(self.counts), strict=True))


def quantile(histograms: Iterable[Histogram], share: float) -> float | None:
    """Estimate the value that this share of all values does not exceed, as Prometheus does.

    Args:
      histograms: of the same bounds.
      share: between 0 and 1.

    Returns:
      A value within the bucket that has it, or the largest bound; None if there is no value.
    """
    counts = [histogram.buckets() for histogram in histograms]
    low, below = 0.0, 0
    total = sum(buckets[-1][1] for buckets in counts)
    for column in zip(*counts, strict=True) if total else ():
        high, up_to = float(column[0][0]), sum(count for _, count in column)
        if up_to >= share * total:
            inside = (share * total - below) / ((up_to - below) or 1)
            return low if math.isinf(high) else low + (high - low) * inside
        low, below = high, up_to
    return None


@dataclasses.dataclass(slots=True)
class Spent:
    """How often something was done, and the seconds that it took together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count it once more."""
        self.count += 1
        self.seconds += seconds

    def merge(self, other: "Spent") -> None:
        """Count what another one did."""
        self.count += other.count
        self.seconds += other.seconds


@dataclasses.dataclass(slots=True)
class Bucket:
    """What one program did.

    Attributes:
      batch: rows that it takes.
      stage: laying rows out for it.
      run: the program, copies to the device and back included.
      unstage: giving each task its rows.
    """

    batch: int
    stage: Spent = dataclasses.field(default_factory=Spent)
    run: Spent = dataclasses.field(default_factory=Spent)
    unstage: Spent = dataclasses.field(default_factory=Spent)

    def merge(self, other: "Bucket") -> None:
        """Count what the same program did elsewhere."""
        self.stage.merge(other.stage)
        self.run.merge(other.run)
        self.unstage.merge(other.unstage)


_PARTS = ("stage", "run", "unstage")


class Metrics:
    """The counts of one server.

    Attributes:
      requests: (protocol, code) to requests.
      failures: reason to requests for an inference.
      durations: protocol to the seconds of its requests.
      succeeded: requests for an inference that were answered.
      failed: those that were not.
      queued: seconds from each task's arrival to its batch.
      computed: seconds of each batch on the device's thread.
      batch_rows: rows of each batch, without padding.
      buckets: name to what it did.
      rows: answered.
      padding_rows: run for nothing.
      elements: of inputs that were run, padding included.
      padding_elements: of these, padding.
      nonfinite: answers that held NaN, or infinity where the bundle declares none.
    """

    def __init__(self) -> None:
        self.requests: collections.Counter[tuple[str, str]] = collections.Counter()
        self.failures: collections.Counter[str] = collections.Counter()
        self.durations: dict[str, Histogram] = {}
        self.succeeded = Spent()
        self.failed = Spent()
        self.queued = Histogram(SECONDS)
        self.computed = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)
        self.buckets: dict[str, Bucket] = {}
        self.rows = 0
        self.padding_rows = 0
        self.elements = 0
        self.padding_elements = 0
        self.nonfinite = 0

    def inference(self, protocol: str, code: str, seconds: float, slug: str | None = None) -> None:
        """Count a request for an inference.

        Args:
          protocol: how it came in.
          code: what it was answered with, as its protocol names it.
          seconds: from its first byte to its answer.
          slug: why it failed, if it did; see `status`.
        """
        self.requests[protocol, code] += 1
        if protocol not in self.durations:
            self.durations[protocol] = Histogram(SECONDS)
        self.durations[protocol].observe(seconds)
        if slug is None:
            self.succeeded.add(seconds)
        else:
            self.failures[_REASONS.get(slug, "other")] += 1
            self.failed.add(seconds)

    def batch(
        self,
        name: str,
        bucket: int,
        rows: int,
        answered: int,
        times: tuple[float, float, float, float],
    ) -> None:
        """Count a batch.

        Args:
          name: of its program.
          bucket: rows that the program takes.
          rows: that were in it.
          answered: those of them that did not fail.
          times: instants at which it was begun, staged, run and unstaged.
        """
        begun, staged, run, ended = times
        if name not in self.buckets:
            self.buckets[name] = Bucket(bucket)
        program = self.buckets[name]
        program.stage.add(staged - begun)
        program.run.add(run - staged)
        program.unstage.add(ended - run)
        self.computed.observe(ended - begun)
        self.batch_rows.observe(rows)
        self.rows += answered
        self.padding_rows += bucket - rows

    def padding(self, elements: int, padding: int) -> None:
        """Count the input elements of a batch, and those that were padding."""
        self.elements += elements
        self.padding_elements += padding

    def other(self, protocol: str, code: str) -> None:
        """Count a request for anything but an inference."""
        self.requests[protocol, code] += 1

    def merge(self, other: "Metrics") -> None:
        """Count what another process has counted."""
        self.requests.update(other.requests)
        self.failures.update(other.failures)
        for protocol, histogram in other.durations.items():
            self.durations.setdefault(protocol, Histogram(SECONDS)).merge(histogram)
        self.succeeded.merge(other.succeeded)
        self.failed.merge(other.failed)
        self.queued.merge(other.queued)
        self.computed.merge(other.computed)
        self.batch_rows.merge(other.batch_rows)
        for name, bucket in other.buckets.items():
            self.buckets.setdefault(name, Bucket(bucket.batch)).merge(bucket)
        self.rows += other.rows
        self.padding_rows += other.padding_rows
        self.elements += other.elements
        self.padding_elements += other.padding_elements
        self.nonfinite += other.nonfinite

    def plain(self) -> dict[str, Any]:
        """Give the counts as JSON has them, the dataclasses apart, which orjson writes."""
        requests = [[*key, count] for key, count in self.requests.items()]
        return {**vars(self), "requests": requests}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Metrics":
        """Give the counts that `plain` gave to JSON."""
        made = cls()
        vars(made).update(plain)
        made.requests = collections.Counter({(p, code): n for p, code, n in plain["requests"]})
        made.failures = collections.Counter(plain["failures"])
        made.durations = {p: Histogram(**found) for p, found in plain["durations"].items()}
        made.succeeded, made.failed = Spent(**plain["succeeded"]), Spent(**plain["failed"])
        for name in ("queued", "computed", "batch_rows"):
            setattr(made, name, Histogram(**plain[name]))
        made.buckets = {
            name: Bucket(found["batch"], *(Spent(**found[part]) for part in _PARTS))
            for name, found in plain["buckets"].items()
        }
        return made


def total(several: Sequence[Metrics]) -> Metrics:
    """Add up what several processes have counted."""
    if len(several) == 1:
        return several[0]
    found = Metrics()
    for metrics in several:
        found.merge(metrics)
    return found
