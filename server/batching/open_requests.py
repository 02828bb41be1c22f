"""The requests that have no answer yet, in order of arrival, and when they end without one."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator

from server.batching.pending_request import InferenceResult, PendingRequest
from server.errors import DeadlineExceeded

log = logging.getLogger(__name__)


class OpenRequests:
    """The requests of a service that have not ended. All methods are called on one event loop.

    Args:
      timeout_s: time limit of every request.
      release: called with a request that ends, before its result is passed on.

    Attributes:
      deprioritized: those whose clients may have gone, the oldest first.
    """

    def __init__(self, timeout_s: float, release: Callable[[PendingRequest], object]) -> None:
        self._timeout_s = timeout_s
        self._release = release
        self._requests: dict[PendingRequest, None] = {}
        self.deprioritized: dict[PendingRequest, None] = {}
        self._none = asyncio.Event()
        # One for all that have no shorter limit of their own.
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[PendingRequest]:
        return iter(self._requests)

    def __contains__(self, request: object) -> bool:
        return request in self._requests

    def add(self, request: PendingRequest, timeout_s: float | None) -> None:
        """Add a request, which is refused when its time is over.

        Args:
          request: that just arrived.
          timeout_s: its own limit, less than that of every request; None if it has none.
        """
        self._requests[request] = None
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            request.timer = loop.call_later(timeout_s, self.finish, request, _late(timeout_s))
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)

    def deprioritize(self, request: PendingRequest) -> None:
        """Note that a client may have gone, unless its request has ended."""
        if request in self._requests:
            self.deprioritized[request] = None

    def finish(self, request: PendingRequest, result: InferenceResult | Exception) -> None:
        """End a request with its result or error, unless it has ended."""
        if request in self._requests:
            done = request.done
            self.drop(request)
            try:
                done(result)
            except Exception:  # the others of its batch have nothing to do with it
                log.exception("an answer could not be passed on")

    def drop(self, request: PendingRequest) -> None:
        """End a request without a result, unless it has ended."""
        if request not in self._requests:
            return
        del self._requests[request]
        self.deprioritized.pop(request, None)
        if request.timer is not None:
            request.timer.cancel()
        if request.reserved or request.remaining or request.counted_bytes:
            self._release(request)
        request.clear()
        if not self._requests:
            self._none.set()

    def finish_all(self, error: Exception) -> int:
        """End all requests with an error; return their number."""
        pending = list(self._requests)
        for request in pending:
            self.finish(request, error)
        return len(pending)

    async def drained(self) -> None:
        """Wait until there is no request."""
        while self._requests:
            self._none.clear()
            await self._none.wait()

    def _expire(self) -> None:
        """Refuse requests whose time is over; they are in order of arrival."""
        now = time.monotonic()
        late = itertools.takewhile(lambda r: r.arrived + self._timeout_s <= now, self._requests)
        for request in list(late):
            self.finish(request, _late(self._timeout_s))
        first = next(iter(self._requests), None)
        self._timer = None
        if first is not None:
            left_s = first.arrived + self._timeout_s - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)


def _late(limit_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {limit_s * 1e3:.0f} ms")
