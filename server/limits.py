"""What a server takes on: rows, bytes and seconds."""

import dataclasses

from runtime.records.predictions import Nonfinite


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the service takes on.

    Attributes:
      queue_rows: rows that may wait.
      request_rows: rows of one request, which has to fit in the queue as well.
      held_bytes: of bodies and messages, from when they begin to come until they are answered.
      queue_delay_s: longest that a task waits for company while the device is free.
      timeout_s: longest that a request takes, its own deadline apart.
      stall_s: longest that a batch takes before the device is given up.
      failures: batches that fail whole, one after the other, before it is given up.
      in_place_s: batches that take no longer run on the loop's own thread; see `pump`.
      nonfinite: what JSON is given for NaN, and for infinity that is not declared.
    """

    queue_rows: int = 4096
    request_rows: int = 1024
    held_bytes: int = 1 << 29
    queue_delay_s: float = 0.0
    timeout_s: float = 60.0
    stall_s: float = 120.0
    failures: int = 3
    in_place_s: float = 0.001
    nonfinite: Nonfinite = "null"


@dataclasses.dataclass(frozen=True, slots=True)
class BodyLimits:
    """The largest bodies that are read, in bytes after decompression."""

    json_bytes: int
    binary_bytes: int
