"""Statistics snapshots: the counts of one process, and of all processes of a server."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import orjson

from runtime.device import live_arrays, memory_in_use
from server.batching.service import Service
from server.logs import lines_dropped
from server.metrics import Metrics, total


@dataclasses.dataclass(frozen=True, slots=True)
class StatsSnapshot:
    """The statistics of one process, or the sum of several.

    Attributes:
      metrics: counters and histograms.
      queued_rows: rows in the batch queue.
      compiles: programs compiled since the model was opened.
      arrays: live arrays on the device.
      memory: bytes in use on the devices; None if they do not report them.
      pids: process ids.
      memory_by_device: bytes in use, by the names of the devices that report them.
      lines_dropped: log lines that were not written, for a slow reader or as repetitions.
    """

    metrics: Metrics
    queued_rows: int
    compiles: int
    arrays: int
    memory: int | None
    pids: tuple[int, ...]
    lines_dropped: int = 0
    memory_by_device: Mapping[str, int] = dataclasses.field(default_factory=dict)


# Returns the statistics of the whole server; called on the event loop.
CollectStats = Callable[[], StatsSnapshot]


def snapshot_of(service: Service) -> StatsSnapshot:
    """Return the statistics of this process. On the event loop."""
    model = service.model if service.loaded else None
    in_use = {one.device_name: memory_in_use(one.device) for one in service.models}
    memory = {name: used for name, used in in_use.items() if used is not None}
    return StatsSnapshot(
        service.metrics,
        service.queued_rows,
        service.compiles,
        0 if model is None else live_arrays(model.platform),
        sum(memory.values()) if memory else None,
        (os.getpid(),),
        lines_dropped(),
        memory,
    )


def merge(snapshots: Sequence[StatsSnapshot]) -> StatsSnapshot:
    """Return the sum of the snapshots of several processes."""
    memory = [snapshot.memory for snapshot in snapshots if snapshot.memory is not None]
    by_device: Counter[str] = Counter()
    for snapshot in snapshots:
        by_device.update(snapshot.memory_by_device)
    return StatsSnapshot(
        total([snapshot.metrics for snapshot in snapshots]),
        sum(snapshot.queued_rows for snapshot in snapshots),
        sum(snapshot.compiles for snapshot in snapshots),
        sum(snapshot.arrays for snapshot in snapshots),
        sum(memory) if memory else None,
        tuple(pid for snapshot in snapshots for pid in snapshot.pids),
        sum(snapshot.lines_dropped for snapshot in snapshots),
        dict(by_device),
    )


def write(snapshot: StatsSnapshot) -> bytes:
    """Return a snapshot serialized, for another process of the same server."""
    fields = {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}
    return orjson.dumps({**fields, "metrics": snapshot.metrics.to_json()})


def read(data: bytes) -> StatsSnapshot:
    """Return the snapshot that `write` serialized."""
    fields = orjson.loads(data)
    return StatsSnapshot(
        **{**fields, "metrics": Metrics.from_json(fields["metrics"]), "pids": tuple(fields["pids"])}
    )
