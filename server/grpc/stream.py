"""A gRPC stream of requests: many pending at once, each answered when it is ready.

gRPC spends less on a message of a stream than on a call, so little may be added to it here.
"""

import asyncio
import collections
from collections.abc import AsyncIterable, Awaitable, Callable

from server.batching.memory_budget import Unread
from server.errors import BodyTimeout, Overloaded

# Of one stream, read but not yet answered. Enough for two batches of the largest buckets; a
# client that does not read its answers takes no more.
MAX_PENDING = 256
# Bytes of answers, made or expected, that keep a stream from reading more requests.
UNREAD = 1 << 24
# For how many checks, each so long after the last, a client may read none of its answers.
CHECK_S = 5.0
MAX_CHECKS = 12
# Open streams of this process. Each may have one message that is arriving.
STREAMS = 128


class Stream:
    """Answers the requests of one stream, in whatever order they get ready.

    The task that has an answer writes it, and those that get ready meanwhile, unless another
    already writes: no task has to be woken only to write.

    Args:
      answer: returns the answer to a request, and has counted it; raises nothing.
      write: sends an answer; called again only once it has.
      max_pending: requests that are read before one of them is answered.
      unread: counts the answers that the client has not read.
      expected: bytes that an answer may have, before there was one.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Awaitable[bytes]],
        write: Callable[[bytes], Awaitable[object]],
        max_pending: int = MAX_PENDING,
        unread: Unread | None = None,
        expected: int = 0,
    ) -> None:
        self._answer = answer
        self._write = write
        # The last of them is read, and waits: what follows it stays with the client.
        self._slots = asyncio.Semaphore(max_pending + 1)
        self._unread = unread
        self._expected = expected
        self._pending = 0
        self._read_on: asyncio.Future[None] | None = None
        self._ready: collections.deque[bytes] = collections.deque()
        self._writing = False
        self._written = self._seen = self._checks = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[object] | None = None
        self._reading = False
        self._error: Exception | None = None
        self._refusal: Exception | None = None

    async def run(self, requests: AsyncIterable[bytes]) -> bool:
        """Answer until the client has no more requests; cancelling cancels all of them.

        Returns:
          Whether it was the client that ended it, and not `stop`.

        Raises:
          Exception: what `write` raised, or `end` was given.
        """
        self._reader = asyncio.current_task()
        try:
            ended = await self._read(requests)
            while self._tasks:
                await asyncio.wait(self._tasks)
        except asyncio.CancelledError:
            if self._refusal is None or self._reader is None or self._reader.uncancel():
                raise  # it was not `end`, or not alone
            raise self._refusal from None
        finally:
            for task in self._tasks:
                task.cancel()
            if self._unread is not None:
                self._unread.remove(self._unread.size)
        if self._error is not None:
            raise self._error
        return ended

    def stop(self) -> None:
        """Read no more requests; those that were read are answered."""
        if self._reading and self._reader is not None:
            self._reading = False
            self._reader.cancel()

    def end(self, refusal: Exception) -> None:
        """Cancel all requests; `run` raises this error."""
        if self._refusal is None and self._reader is not None:
            self._refusal = refusal
            self._reader.cancel()

    def check_timeouts(self) -> None:
        """End it if its client reads nothing; has to be called every so often."""
        self._checks = self._checks + 1 if self._writing and self._written == self._seen else 0
        self._seen = self._written
        if self._checks > MAX_CHECKS:
            self.end(
                BodyTimeout(f"answers: expected one to be read within {MAX_CHECKS * CHECK_S:g} s")
            )

    async def _read(self, requests: AsyncIterable[bytes]) -> bool:
        loop = asyncio.get_running_loop()
        self._reading = True
        iterator = aiter(requests)
        try:
            while True:
                await self._slots.acquire()
                while self._full():
                    self._read_on = loop.create_future()
                    await self._read_on
                try:
                    request = await anext(iterator)
                except StopAsyncIteration:
                    break
                self._pending += 1
                # Started at once, without a turn of the loop: often it gets into the batch
                # that is about to be launched.
                task = asyncio.Task(self._one(request), loop=loop, eager_start=True)
                if not task.done():
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except asyncio.CancelledError:
            if self._reading or self._reader is None or self._reader.uncancel():
                raise  # it was not `stop`, or not alone
            return False
        self._reading = False
        return True

    def _full(self) -> bool:
        """Return whether another request could have more answers wait than may."""
        if self._unread is None or self._unread.size + self._pending == 0:
            return False
        return self._unread.size + (self._pending + 1) * self._expected > UNREAD

    async def _one(self, request: bytes) -> None:
        answer = await self._answer(request)
        self._pending -= 1
        self._expected = max(self._expected, len(answer))
        self._ready.append(answer)
        if self._writing:
            return
        self._writing = True
        while self._ready:
            answer = self._ready.popleft()
            try:
                await self._write(answer)
            except Exception as error:  # noqa: BLE001 (its client has gone; gRPC ends the stream)
                self._error = error
            self._written += 1
            if self._unread is not None:
                self._unread.remove(len(answer))
            self._slots.release()
            if self._read_on is not None and not self._full():
                waiting, self._read_on = self._read_on, None
                if not waiting.done():
                    waiting.set_result(None)
        self._writing = False


class Streams:
    """The open streams, which are limited in number, and whose timeouts are checked.

    At the limit a new one ends the newest of the connection with the largest number.

    Args:
      limit: of open streams.
    """

    def __init__(self, limit: int = STREAMS) -> None:
        self._limit = limit
        self._connections: dict[str, dict[Stream, None]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: str, stream: Stream) -> None:
        """Add a stream.

        Raises:
          Overloaded: there are too many, of its own connection more than of others.
        """
        own = self._connections.get(connection, {})
        if self._count >= self._limit:
            error = Overloaded(f"streams: expected at most {self._limit} at once, got more")
            largest = max(self._connections.values(), key=len)
            if len(largest) <= len(own) + 1:
                raise error
            newest = next(reversed(largest))
            newest.end(error)
            self._remove(newest)
        self._connections.setdefault(connection, {})[stream] = None
        self._count += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._on_time)

    def discard(self, connection: str, stream: Stream) -> None:
        """Remove a stream, if it is there."""
        streams = self._connections.get(connection, {})
        if stream in streams:
            del streams[stream]
            self._count -= 1
            if not streams:
                del self._connections[connection]

    def stop(self) -> None:
        """End each stream once the requests that were read are answered."""
        for streams in self._connections.values():
            for stream in streams:
                stream.stop()

    def _remove(self, stream: Stream) -> None:
        for connection, streams in self._connections.items():
            if stream in streams:
                self.discard(connection, stream)
                return

    def _on_time(self) -> None:
        self._timer = None
        for streams in list(self._connections.values()):
            for stream in list(streams):
                stream.check_timeouts()
        if self._connections:
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._on_time)
