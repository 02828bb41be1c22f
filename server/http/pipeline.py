"""Request pipelining: requests of one connection are answered one at a time, in order."""

import collections
from collections.abc import Callable
from typing import Protocol

from server.batching.memory_budget import FREE_BYTES, MemoryBudget
from server.errors import TooLarge
from server.http.flow_control import FlowControl
from server.http.message import Request, RequestHead
from server.protocols.body import BodyInfo
from server.protocols.response import Response

# Requests that wait behind the one being answered, or behind responses that the client does not
# read. Clients that pipeline at all send a few.
PIPELINED = 64


class RunningRequest(Protocol):
    """A request whose response is not there yet."""

    def cancel(self) -> object:
        """Cancel it: its client disconnected."""

    def deprioritize(self) -> object:
        """Let it be dropped where the queue is full: its client may have disconnected."""


class RequestHandler(Protocol):
    """Answers the requests of connections.

    Attributes:
      memory: counts the bytes of bodies.
    """

    memory: MemoryBudget

    def on_headers(self, head: RequestHead) -> BodyInfo:
        """Return what the headers say about the body; raises what refuses the request."""

    def answer(
        self, request: Request, on_response: Callable[[Response], object]
    ) -> RunningRequest | None:
        """Answer a request; returns what to cancel, unless it is answered already."""

    def refuse(self, head: RequestHead | None, error: Exception) -> Response:
        """Return the error response for a request that was not read completely."""

    def closing(self) -> bool:
        """Whether connections are to be closed after their responses."""


class Pipeline:
    """The requests of one connection that have no response yet.

    Args:
      handler: answers them.
      flow: whether the client reads its responses.
      write: called with each response in order, and its request; None for the error response
        that ends the connection.
    """

    __slots__ = ("_current", "_deprioritized", "_flow", "_handler", "_queue", "_running", "_write")

    def __init__(
        self,
        handler: RequestHandler,
        flow: FlowControl,
        write: Callable[[Response, Request | None], object],
    ) -> None:
        self._handler = handler
        self._flow = flow
        self._write = write
        self._queue: collections.deque[Request | Response] = collections.deque()
        self._current: Request | None = None
        self._running: RunningRequest | None = None
        self._deprioritized = False

    @property
    def waiting(self) -> int:
        """Return how many requests wait behind the current one."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether every request has its response."""
        return self._current is None and not self._queue

    def add(self, request: Request) -> None:
        """Answer a request after those before it.

        Raises:
          TooLarge: there are PIPELINED requests already.
          Overloaded: the bodies of all requests would exceed the memory budget.
        """
        try:
            self._count_memory(request)
        except Exception:
            self._release(request)
            raise
        self._queue.append(request)
        self.resume()

    def add_error(self, response: Response) -> None:
        """Send an error response after the responses to the requests before it."""
        self._queue.append(response)
        self.resume()

    def resume(self) -> None:
        """Answer the next request, if no other is being answered and the client reads."""
        if self._current is not None or not self._queue or not self._flow.writable:
            return
        item = self._queue.popleft()
        if isinstance(item, Response):
            self._write(item, None)
            return
        self._current = item
        running = self._handler.answer(item, self._on_response)
        if self._current is item:
            self._running = running
            if self._deprioritized and running is not None:
                running.deprioritize()

    def deprioritize(self) -> None:
        """Let the requests, now and later, be dropped where the service's queue is full."""
        self._deprioritized = True
        if self._running is not None:
            self._running.deprioritize()

    def clear(self) -> None:
        """Drop the requests behind the current one."""
        for item in self._queue:
            if isinstance(item, Request):
                self._release(item)
        self._queue.clear()

    def cancel(self) -> None:
        """Drop all requests: the client disconnected."""
        self.clear()
        if self._current is not None and self._running is not None:
            self._running.cancel()
            self._release(self._current)

    def _on_response(self, response: Response) -> None:
        request, self._current, self._running = self._current, None, None
        if request is not None:
            self._release(request)
        self._write(response, request)
        self.resume()

    def _count_memory(self, request: Request) -> None:
        """Count a request's body, unless it is small and the only one."""
        if len(self._queue) == PIPELINED:
            raise TooLarge(f"requests: expected at most {PIPELINED} ahead of their answers")
        size = len(request.body)
        if size > FREE_BYTES or self._queue or self._current is not None:
            self._handler.memory.acquire(size - request.counted)
            request.counted = size

    def _release(self, request: Request) -> None:
        """Stop counting a request's body: it is answered, or dropped."""
        if request.counted:
            self._handler.memory.release(request.counted)
            request.counted = 0
