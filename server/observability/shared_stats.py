"""Shared statistics: memory in which the worker processes of a server publish their snapshots.

Each process has a slot. There is no lock: a process writes its own slot shortly after its statistics
changed, and reads the others' at any time. A read during a write is detected by a checksum.
"""

import asyncio
import mmap
import os
import struct
import zlib

from server.batching.service import Service
from server.logs import lines_dropped
from server.observability.snapshot import StatsSnapshot, merge, read, snapshot_of, write

# A snapshot takes about 10 KB.
SLOT_BYTES = 1 << 18
# Interval of publishing: how old another process's snapshot may be.
PUBLISH_S = 0.25
_HEADER = struct.Struct("=II")  # bytes that follow, and their CRC-32
_READ_ATTEMPTS = 8


class SharedStats:
    """The shared memory, as seen by one process.

    Args:
      fd: file descriptor of the memory; None to create it.
      slots: number of processes.
      own_slot: index of this process.

    Attributes:
      fd: file descriptor, inherited by the other processes.
    """

    def __init__(self, fd: int | None, slots: int, own_slot: int) -> None:
        self.fd = os.memfd_create("hloserve") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, slots * SLOT_BYTES)
        self._memory = mmap.mmap(self.fd, slots * SLOT_BYTES)
        self._places = slots
        self._own_slot = own_slot
        self._latest: dict[int, StatsSnapshot] = {}

    def write(self, snapshot: StatsSnapshot) -> None:
        """Write this process's snapshot to its slot, if it fits."""
        data = write(snapshot)
        at = self._own_slot * SLOT_BYTES
        if _HEADER.size + len(data) <= SLOT_BYTES:
            self._memory[at + _HEADER.size : at + _HEADER.size + len(data)] = data
            self._memory[at : at + _HEADER.size] = _HEADER.pack(len(data), zlib.crc32(data))

    def read_others(self) -> list[StatsSnapshot]:
        """Return the latest snapshots of the other processes that have written one."""
        for slot in range(self._places):
            if slot != self._own_slot:
                for _ in range(_READ_ATTEMPTS):
                    snapshot = self._read(slot)
                    if snapshot is not None:
                        self._latest[slot] = snapshot
                        break
        return list(self._latest.values())

    def _read(self, slot: int) -> StatsSnapshot | None:
        at = slot * SLOT_BYTES
        size, checksum = _HEADER.unpack(self._memory[at : at + _HEADER.size])
        data = self._memory[at + _HEADER.size : at + _HEADER.size + size]
        if not data or zlib.crc32(data) != checksum:
            return None
        return read(data)

    def collect(self, service: Service) -> StatsSnapshot:
        """Return the sum of all processes' statistics; this process's are current."""
        return merge([snapshot_of(service), *self.read_others()])

    async def publish(self, service: Service, every_s: float = PUBLISH_S) -> None:
        """Write this process's snapshot whenever it has changed, until cancelled."""
        published = None
        while True:
            metrics = service.metrics
            counted = metrics.requests.total(), metrics.rows, service.queued_rows, lines_dropped()
            if counted != published:
                published = counted
                self.write(snapshot_of(service))
            await asyncio.sleep(every_s)
