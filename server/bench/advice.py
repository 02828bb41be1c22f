"""What would answer more on this machine, from what a load test measured: pure arithmetic.

Only the server's own counts are used: what its programs took, and how many rows each batch had.
"""

import bisect
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from server.throughput import MIN_GAIN, process_gain, share_seconds

_ROWS = re.compile(r'^hloserve_batch_rows_bucket\{[^}]*le="([^"]+)"[^}]*\} (\S+)$', re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """What a server has counted.

    Attributes:
      rows: that were run, without padding.
      runs: batch size to the number of batches, and their seconds.
      sizes: number of rows to the batches that had no more, in order; empty if not known.
    """

    rows: int
    runs: Mapping[int, tuple[int, float]]
    sizes: Mapping[float, float]

    def since(self, before: "Counts") -> "Counts":
        """Return what was counted since then."""
        runs = {}
        for batch, (count, seconds) in self.runs.items():
            earlier = before.runs.get(batch, (0, 0.0))
            if count > earlier[0]:
                runs[batch] = (count - earlier[0], seconds - earlier[1])
        sizes = {le: count - before.sizes.get(le, 0.0) for le, count in self.sizes.items()}
        return Counts(self.rows - before.rows, runs, sizes)


def read_counts(statistics: Mapping[str, Any], metrics: str) -> Counts:
    """Return the counts of a server.

    Args:
      statistics: the response of the statistics extension.
      metrics: the page for Prometheus; empty without one.
    """
    (model,) = statistics["model_stats"]
    runs: dict[int, tuple[int, float]] = {}
    for batch in model["batch_stats"]:
        size = int(batch["batch_size"])
        parts = [batch[f"compute_{part}"]["ns"] for part in ("input", "infer", "output")]
        count, seconds = runs.get(size, (0, 0.0))
        runs[size] = (count + batch["compute_infer"]["count"], seconds + sum(parts) / 1e9)
    sizes = {float(le): float(count) for le, count in _ROWS.findall(metrics)}
    return Counts(model["inference_count"], runs, dict(sorted(sizes.items())))


def advise(
    counts: Counts,
    *,
    requests: int,
    seconds: float,
    under_way: int,
    buckets: Sequence[int],
    cores: int,
    processes: int,
    chosen: str = "",
) -> list[str]:
    """Return what would answer more, one line for each: processes, queue delay, buckets.

    Args:
      counts: of the measurement.
      requests: that were answered.
      seconds: how long it took.
      under_way: rows of all connections at once.
      buckets: batch sizes of the bundle.
      cores: that the server may use.
      processes: of the server.
      chosen: why the server chose that number itself, by what it measured; empty where it did not.
    """
    batches = sum(count for count, _ in counts.runs.values())
    if not (requests and batches and counts.rows):
        return ["nothing was answered, so nothing can be recommended"]
    # Of one process, whose loop does one thing after the other.
    whole_s = processes * seconds / requests
    run_s = min(whole_s, sum(spent for _, spent in counts.runs.values()) / requests)
    lines = [
        f"processes: {processes}, as the server chose, since {chosen}"
        if chosen
        else _processes(whole_s, run_s, cores, processes)
    ]
    base_s, row_s = _line(counts.runs)
    mean, most = counts.rows / batches, min(under_way / processes, buckets[-1])
    lines.append(_delay(whole_s, base_s, mean, most, counts.rows / requests, counts.rows / seconds))
    lines.append(_buckets(counts, whole_s, row_s, requests, buckets))
    return lines


def _processes(whole_s: float, run_s: float, cores: int, processes: int) -> str:
    about = f"of the {whole_s * 1e6:.0f} µs of a request its program takes {run_s * 1e6:.0f}"
    if processes >= cores:
        return f"processes: {processes} on {cores} cores is right or enough; {about}"
    n = cores / processes  # what programs take on a part of the cores was not measured
    gain = process_gain(whole_s - run_s, run_s, share_seconds(run_s, n), n)
    if gain < MIN_GAIN:
        return f"processes: more than {processes} would answer no more, since {about}"
    return (
        f"processes: --processes {cores} would answer up to {gain:.1f} times the requests, since "
        f"{about}; each has its own copy of the model"
    )


def _delay(
    whole_s: float, base_s: float, mean: float, most: float, rows: float, rows_per_s: float
) -> str:
    about = f"batches have {mean:.3g} of up to {most:.3g} rows"
    if most > mean:
        gain = whole_s / max(whole_s - base_s * (1 / mean - 1 / most) * rows, whole_s / 100)
        if gain >= MIN_GAIN:
            delay_ms = 1e3 * (most - mean) / rows_per_s
            return (
                f"queue delay: --max-queue-delay-ms {delay_ms:.2g} would answer up to {gain:.1f} times "
                f"the requests, each as much later, since {about}"
            )
    return f"queue delay: waiting for more rows would answer no more, since {about}"


def _buckets(
    counts: Counts, whole_s: float, row_s: float, requests: int, buckets: Sequence[int]
) -> str:
    run = sum(batch * count for batch, (count, _) in counts.runs.items())
    padding = max(0, run - counts.rows)
    about = f"{padding / max(run, 1):.0%} of the rows that ran were padding"
    gain = whole_s / max(whole_s - row_s * padding / requests, whole_s / 100)
    wanted = sorted({*buckets, *_usual(counts.sizes)})
    if gain < MIN_GAIN or wanted == sorted(buckets):
        return f"buckets: others would answer no more, since {about}"
    return (
        f"buckets: exporting with --buckets {','.join(map(str, wanted))} would answer up to {gain:.1f} "
        f"times the requests, since {about}"
    )


def _usual(sizes: Mapping[float, float]) -> set[int]:
    """Return the sizes that half and nine tenths of the batches do not exceed."""
    limits, counts = list(sizes), list(sizes.values())
    if not counts or not counts[-1]:
        return set()
    found = {limits[bisect.bisect_left(counts, share * counts[-1])] for share in (0.5, 0.9)}
    return {int(limit) for limit in found if limit != float("inf")}


def _line(runs: Mapping[int, tuple[int, float]]) -> tuple[float, float]:
    """Return the seconds of a batch, and those of each of its rows: least squares over batches."""
    points = [(batch, seconds / count, count) for batch, (count, seconds) in runs.items()]
    total = sum(count for _, _, count in points)
    mean_x = sum(x * count for x, _, count in points) / total
    mean_y = sum(y * count for _, y, count in points) / total
    spread = sum(count * (x - mean_x) ** 2 for x, _, count in points)
    if not spread:
        return 0.0, mean_y / mean_x  # of one size: what a row takes at most
    slope = sum(count * (x - mean_x) * (y - mean_y) for x, y, count in points) / spread
    slope = min(max(slope, 0.0), mean_y / mean_x)
    return mean_y - slope * mean_x, slope
