"""Limits of the service and of bodies: rows, bytes and seconds."""

import dataclasses

from runtime.records.predictions import Nonfinite

# Batches that take longer run on the thread of a device, and requests are handled meanwhile.
INLINE_S = 0.001


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the service.

    Attributes:
      queue_rows: maximum rows in the batch queue.
      request_rows: maximum rows of a request, which has to fit in the queue as well.
      memory_bytes: memory budget of bodies and messages, from their first byte to the response.
      queue_delay_s: maximum time a task waits for others to share its batch.
      timeout_s: maximum time of a request, beside its own deadline.
      stall_s: maximum time of a batch; beyond, the device counts as hung.
      failures: consecutive failed batches after which the device counts as broken.
      inline_s: maximum measured time of batches that run inline; see `scheduler`.
      nonfinite: JSON for NaN, and for infinity that is not declared.
      preparation_threads: threads that prepare raw inputs.
    """

    queue_rows: int = 4096
    request_rows: int = 1024
    memory_bytes: int = 1 << 29
    queue_delay_s: float = 0.0
    timeout_s: float = 60.0
    stall_s: float = 120.0
    failures: int = 3
    inline_s: float = INLINE_S
    nonfinite: Nonfinite = "null"
    preparation_threads: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class BodyLimits:
    """Maximum bytes of bodies, after decompression."""

    json_bytes: int
    binary_bytes: int
