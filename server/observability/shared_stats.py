"""Where the processes of one server write down their figures, for each of them to read.

A piece of memory that all of them have, a place in it for each. Nobody waits for anybody: a
process writes its own place, a moment after its figures changed, and reads the others' as they
stand. What is read while it is being written is seen by its checksum.
"""

import asyncio
import mmap
import os
import struct
import zlib

from server.batching.service import Service
from server.logs import lines_dropped
from server.observability.snapshot import StatsSnapshot, merge, read, snapshot_of, write

# A place holds about 10 KB of counts, labels and all.
PLACE_BYTES = 1 << 18
# How old another process's figures may be.
RENEWED_S = 0.25
_HEAD = struct.Struct("=II")  # bytes that follow, and their CRC-32
_TRIES = 8


class SharedStats:
    """The board, as one of the processes sees it.

    Args:
      fd: the memory's file, or None to make it.
      places: how many processes there are at most.
      mine: the place of this one.

    Attributes:
      fd: for another process to inherit.
    """

    def __init__(self, fd: int | None, places: int, mine: int) -> None:
        self.fd = os.memfd_create("hloserve") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, places * PLACE_BYTES)
        self._memory = mmap.mmap(self.fd, places * PLACE_BYTES)
        self._places = places
        self._mine = mine
        self._last: dict[int, StatsSnapshot] = {}

    def write(self, figures: StatsSnapshot) -> None:
        """Write this process's figures."""
        data = write(figures)
        at = self._mine * PLACE_BYTES
        if _HEAD.size + len(data) <= PLACE_BYTES:
            self._memory[at + _HEAD.size : at + _HEAD.size + len(data)] = data
            self._memory[at : at + _HEAD.size] = _HEAD.pack(len(data), zlib.crc32(data))

    def read_others(self) -> list[StatsSnapshot]:
        """Read those of the other processes, as far as they have written any."""
        for place in range(self._places):
            if place != self._mine:
                for _ in range(_TRIES):
                    found = self._read(place)
                    if found is not None:
                        self._last[place] = found
                        break
        return list(self._last.values())

    def _read(self, place: int) -> StatsSnapshot | None:
        at = place * PLACE_BYTES
        size, checksum = _HEAD.unpack(self._memory[at : at + _HEAD.size])
        data = self._memory[at + _HEAD.size : at + _HEAD.size + size]
        if not data or zlib.crc32(data) != checksum:
            return None
        return read(data)

    def gather(self, service: Service) -> StatsSnapshot:
        """Give the figures of all processes, this one's as they are now."""
        return merge([snapshot_of(service), *self.read_others()])

    async def publish(self, service: Service, every_s: float = RENEWED_S) -> None:
        """Write this process's figures whenever they have changed; cancelled to end."""
        last = None
        while True:
            metrics = service.metrics
            counted = metrics.requests.total(), metrics.rows, service.queued_rows, lines_dropped()
            if counted != last:
                last = counted
                self.write(snapshot_of(service))
            await asyncio.sleep(every_s)
