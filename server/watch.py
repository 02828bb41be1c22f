"""Requests under way at the front: whose client has gone, and whose body does not come.

A timer and a watcher for each request would cost more than most requests do. So requests
are only written down, and once in a while, as long as there are any, they are looked
through: one that is still there gets a watcher then.
"""

import asyncio
import dataclasses
import time
from typing import Any

PERIOD_S = 0.1
# A body that has not come by then will not come.
BODY_S = 60.0


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    """A request under way.

    Attributes:
      task: answers it; cancelled if it is to end.
      protocol: granian's, which knows of its client.
      begun: the instant it came, monotonic.
      reading: whether its body is still coming.
      gone: whether its client went.
      watcher: waits for that, once the request has been there for a while.
    """

    task: "asyncio.Task[Any] | None"
    protocol: Any
    begun: float
    reading: bool = True
    gone: bool = False
    watcher: "asyncio.Task[None] | None" = None


class Watch:
    """Ends requests that nobody waits for, by cancelling their tasks.

    Args:
      period_s: between two looks.
      body_s: for how long a body may come.
    """

    def __init__(self, period_s: float = PERIOD_S, body_s: float = BODY_S) -> None:
        self._period_s = period_s
        self._body_s = body_s
        self._entries: set[Entry] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, protocol: Any) -> Entry:
        """Write a request down that the current task is to answer."""
        entry = Entry(asyncio.current_task(), protocol, time.monotonic())
        self._entries.add(entry)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._period_s, self._look, loop)
        return entry

    def leave(self, entry: Entry) -> None:
        """Strike a request off. A watcher that is not cancelled would leak."""
        self._entries.discard(entry)
        if entry.watcher is not None:
            entry.watcher.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = time.monotonic()
        for entry in self._entries:
            if entry.reading:
                if now - entry.begun > self._body_s:
                    _cancel(entry)
            elif entry.watcher is None and now - entry.begun > self._period_s:
                entry.watcher = loop.create_task(_until_gone(entry))
        if self._entries:
            self._timer = loop.call_later(self._period_s, self._look, loop)


async def _until_gone(entry: Entry) -> None:
    await entry.protocol.client_disconnect()
    entry.gone = True
    _cancel(entry)


def _cancel(entry: Entry) -> None:
    if entry.task is not None:
        entry.task.cancel()
