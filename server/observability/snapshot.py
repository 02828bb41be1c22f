"""What a server's page and metrics show: the counts of its processes merge."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import orjson

from runtime.device import live_arrays, memory_in_use
from server.batching.service import Service
from server.logs import lines_dropped
from server.metrics import Metrics, total


@dataclasses.dataclass(frozen=True, slots=True)
class StatsSnapshot:
    """What one process has counted, or several have merge.

    Attributes:
      metrics: counts.
      queued_rows: that wait.
      compiles: programs compiled since the model was opened.
      arrays: held on the device.
      memory: bytes in use on the device; None where it does not say.
      pids: the processes.
      lines_dropped: of the log, that nobody read in time or that were repeated too often.
    """

    metrics: Metrics
    queued_rows: int
    compiles: int
    arrays: int
    memory: int | None
    pids: tuple[int, ...]
    lines_dropped: int = 0


# Gives those of the whole server; called on the event loop.
CollectStats = Callable[[], StatsSnapshot]


def snapshot_of(service: Service) -> StatsSnapshot:
    """Give those of this process."""
    model = service.model if service.loaded else None
    return StatsSnapshot(
        service.metrics,
        service.queued_rows,
        service.compiles,
        0 if model is None else live_arrays(model.platform),
        None if model is None else memory_in_use(model.device),
        (os.getpid(),),
        lines_dropped(),
    )


def merge(several: Sequence[StatsSnapshot]) -> StatsSnapshot:
    """Add up those of several processes."""
    memory = [figures.memory for figures in several if figures.memory is not None]
    return StatsSnapshot(
        total([figures.metrics for figures in several]),
        sum(figures.queued_rows for figures in several),
        sum(figures.compiles for figures in several),
        sum(figures.arrays for figures in several),
        sum(memory) if memory else None,
        tuple(pid for figures in several for pid in figures.pids),
        sum(figures.lines_dropped for figures in several),
    )


def write(figures: StatsSnapshot) -> bytes:
    """Write figures for another process of the same server to read."""
    fields = {field.name: getattr(figures, field.name) for field in dataclasses.fields(figures)}
    return orjson.dumps({**fields, "metrics": figures.metrics.to_json()})


def read(data: bytes) -> StatsSnapshot:
    """Read what `write` wrote."""
    found = orjson.loads(data)
    return StatsSnapshot(
        **{**found, "metrics": Metrics.from_json(found["metrics"]), "pids": tuple(found["pids"])}
    )
