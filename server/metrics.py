"""Metrics: counters and histograms of one process. Updated on the event loop alone, without locks."""

import bisect
import collections
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """The number of values up to each bound, and their sum.

    Attributes:
      bounds: increasing.
      counts: of the values up to each bound and beyond the one before; the last, beyond all.
      sum: of the values.
    """

    bounds: Sequence[float]
    counts: list[int] = dataclasses.field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        """Start with counts of zero; bounds read from JSON are a list."""
        self.bounds = tuple(self.bounds)
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """Return the number of values."""
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
        """Return each bound, as text, with the number of values up to it."""
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
class DurationSum:
    """A count, and the sum of the durations in seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self.count += 1
        self.seconds += seconds

    def merge(self, other: "DurationSum") -> None:
        """Add another sum."""
        self.count += other.count
        self.seconds += other.seconds


@dataclasses.dataclass(slots=True)
class BucketTimes:
    """The durations of one program's batches.

    Attributes:
      batch: batch size.
      stage: of laying rows out as its inputs.
      run: of the program, with copies to and from the device.
      unstage: of cutting its outputs back to the tasks.
    """

    batch: int
    stage: DurationSum = dataclasses.field(default_factory=DurationSum)
    run: DurationSum = dataclasses.field(default_factory=DurationSum)
    unstage: DurationSum = dataclasses.field(default_factory=DurationSum)

    def merge(self, other: "BucketTimes") -> None:
        """Add the durations of the same program in another process."""
        self.stage.merge(other.stage)
        self.run.merge(other.run)
        self.unstage.merge(other.unstage)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "BucketTimes":
        """Return the object that orjson wrote."""
        parts = (DurationSum(**found[part]) for part in ("stage", "run", "unstage"))
        return cls(found["batch"], *parts)


def _seconds() -> Histogram:
    return Histogram(SECONDS)


@dataclasses.dataclass(slots=True)
class Metrics:
    """The metrics of one server. Each field is named here and nowhere else in this file.

    Attributes:
      requests: (protocol, code) to requests.
      failures: reason to requests for an inference.
      durations: protocol to the seconds of its requests.
      succeeded: requests for an inference that were answered.
      failed: requests for an inference that failed.
      queued: seconds from each task's arrival to its batch.
      computed: seconds of each batch on the device's thread.
      batch_rows: rows of each batch, without padding.
      buckets: program name to the durations of its batches.
      devices: device name to the durations of its batches.
      rows: answered.
      padding_rows: of padding, in all batches.
      elements: of inputs that were run, padding included.
      padding_elements: of these, padding.
      nonfinite: answers with NaN, or infinity where the bundle declares none.
      prepared: seconds that the raw inputs of each request took to prepare.
      tokens: of texts.
      truncated: rows of which a text was cut off.
      row_errors: rows that failed by themselves, in requests that asked for that.
      panics: calls in which the library that prepares raw inputs failed by itself.
    """

    requests: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    failures: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    durations: dict[str, Histogram] = dataclasses.field(default_factory=dict)
    succeeded: DurationSum = dataclasses.field(default_factory=DurationSum)
    failed: DurationSum = dataclasses.field(default_factory=DurationSum)
    queued: Histogram = dataclasses.field(default_factory=_seconds)
    computed: Histogram = dataclasses.field(default_factory=_seconds)
    batch_rows: Histogram = dataclasses.field(default_factory=lambda: Histogram(ROWS))
    buckets: dict[str, BucketTimes] = dataclasses.field(default_factory=dict)
    devices: dict[str, DurationSum] = dataclasses.field(default_factory=dict)
    rows: int = 0
    padding_rows: int = 0
    elements: int = 0
    padding_elements: int = 0
    nonfinite: int = 0
    prepared: Histogram = dataclasses.field(default_factory=_seconds)
    tokens: int = 0
    truncated: int = 0
    row_errors: int = 0
    panics: int = 0

    def count_inference(
        self, protocol: str, code: str, seconds: float, error_code: str | None = None
    ) -> None:
        """Count a request for an inference.

        Args:
          protocol: that it was sent by.
          code: what it was answered with, as its protocol names it.
          seconds: from its first byte to its answer.
          error_code: error code, if it failed; see `status`.
        """
        self.requests[protocol, code] += 1
        if protocol not in self.durations:
            self.durations[protocol] = Histogram(SECONDS)
        self.durations[protocol].observe(seconds)
        if error_code is None:
            self.succeeded.add(seconds)
        else:
            self.failures[_REASONS.get(error_code, "other")] += 1
            self.failed.add(seconds)

    def count_batch(
        self,
        name: str,
        device: str,
        bucket: int,
        rows: int,
        answered: int,
        times: tuple[float, float, float, float],
    ) -> None:
        """Count a batch.

        Args:
          name: of its program.
          device: name of the device that ran it.
          bucket: rows that the program takes.
          rows: that were in it.
          answered: those of them that did not fail.
          times: instants at which it was begun, staged, run and unstaged.
        """
        begun, staged, run, ended = times
        if name not in self.buckets:
            self.buckets[name] = BucketTimes(bucket)
        program = self.buckets[name]
        program.stage.add(staged - begun)
        program.run.add(run - staged)
        program.unstage.add(ended - run)
        if device not in self.devices:
            self.devices[device] = DurationSum()
        self.devices[device].add(ended - begun)
        self.computed.observe(ended - begun)
        self.batch_rows.observe(rows)
        self.rows += answered
        self.padding_rows += bucket - rows

    def count_padding(self, elements: int, padding: int) -> None:
        """Count the input elements of a batch, and those that were padding."""
        self.elements += elements
        self.padding_elements += padding

    def count_preparation(self, seconds: float, tokens: int, truncated: int) -> None:
        """Count the raw inputs of a request.

        Args:
          seconds: that they took to prepare.
          tokens: of its texts.
          truncated: rows of which a text was cut off.
        """
        self.prepared.observe(seconds)
        self.tokens += tokens
        self.truncated += truncated

    def count_request(self, protocol: str, code: str) -> None:
        """Count a request for anything but an inference."""
        self.requests[protocol, code] += 1

    def merge(self, other: "Metrics") -> None:
        """Add the metrics of another process."""
        for field in dataclasses.fields(self):
            mine, more = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, _added(mine, more))

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as JSON values, and dataclasses, which orjson writes."""
        counts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**counts, "requests": [[*key, count] for key, count in self.requests.items()]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Metrics":
        """Return the metrics that `to_json` wrote, after JSON."""
        read: dict[str, Callable[[Any], Any]] = {
            "requests": lambda pairs: collections.Counter({(p, code): n for p, code, n in pairs}),
            "failures": collections.Counter,
            "durations": lambda each: {p: Histogram(**one) for p, one in each.items()},
            "buckets": lambda each: {b: BucketTimes.from_json(one) for b, one in each.items()},
            "devices": lambda each: {name: DurationSum(**one) for name, one in each.items()},
        }
        blank = cls()
        for name, value in found.items():
            default = getattr(blank, name)
            if name in read:
                setattr(blank, name, read[name](value))
            else:
                setattr(blank, name, value if type(default) is int else type(default)(**value))
        return blank


def _added(mine: Any, more: Any) -> Any:
    """Return two counts of the same thing together; the first may be changed for it."""
    if isinstance(mine, int | collections.Counter):
        return mine + more
    if isinstance(mine, dict):
        for name, value in more.items():
            mine[name] = _added(mine[name], value) if name in mine else copy.deepcopy(value)
    else:
        mine.merge(more)
    return mine


def total(several: Sequence[Metrics]) -> Metrics:
    """Return the sum of several processes' metrics."""
    if len(several) == 1:
        return several[0]
    found = Metrics()
    for metrics in several:
        found.merge(metrics)
    return found
