"""Flow control and timeouts of a connection: which side it waits for, and for how long."""

import enum
import time
from typing import Any

from server.protocols.body import BODY_S, PROGRESS_BYTES

# Longer than the idle timeout of common load balancers (Google's: 600 s), so that none of them sends
# a request into a connection that is being closed.
IDLE_S = 620.0
HEAD_S = 30.0
# A client has to read PROGRESS_BYTES of its responses in this time.
WRITE_S = 60.0
# How long received data is discarded after the last response, so that the client can read it.
LINGER_S = 2.0


class Phase(enum.Enum):
    """What a connection is reading; the value is the timeout in seconds."""

    IDLE = IDLE_S
    HEAD = HEAD_S
    BODY = BODY_S
    LINGER = LINGER_S


class ReadTimeout:
    """The phase of a connection, and when its timeout expires.

    Attributes:
      phase: the current phase.
      since: when it began, or made progress; monotonic.
    """

    __slots__ = ("_progress", "phase", "since")

    def __init__(self) -> None:
        self.enter(Phase.IDLE)

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        self.phase = phase
        self.since = time.monotonic()
        self._progress = 0

    def add_progress(self, size: int) -> None:
        """Restart the timeout once PROGRESS_BYTES of a body have been received."""
        self._progress += size
        if self._progress >= PROGRESS_BYTES:
            self.enter(self.phase)

    def expired(self, now: float) -> bool:
        """Whether the phase has lasted longer than its timeout."""
        return now - self.since > self.phase.value


class FlowControl:
    """Whether the client reads its responses.

    Args:
      transport: of the connection.

    Attributes:
      paused_since: when the write buffer became full, or last made progress; None while it is not.
    """

    __slots__ = ("_transport", "_unsent", "paused_since")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._unsent = 0
        self.paused_since: float | None = None

    @property
    def writable(self) -> bool:
        """Whether another response may be written."""
        return self.paused_since is None and not self._transport.is_closing()

    def pause(self) -> None:
        """Stop writing: the write buffer is full."""
        self.paused_since = time.monotonic()
        self._unsent = self._transport.get_write_buffer_size()

    def resume(self) -> None:
        """Go on writing: the client has read enough."""
        self.paused_since = None

    def stalled(self, now: float) -> bool:
        """Whether the client has read less than PROGRESS_BYTES in WRITE_S seconds."""
        if self.paused_since is None:
            return False
        unsent = self._transport.get_write_buffer_size()
        if unsent <= self._unsent - PROGRESS_BYTES:
            self.paused_since, self._unsent = now, unsent
        return now - self.paused_since > WRITE_S
