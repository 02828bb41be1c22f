"""A stream of requests: many under way at once, each answered as soon as it can be.

gRPC spends less on a message of a stream than on a call, so little may be added to it here.
"""

import asyncio
import collections
from collections.abc import AsyncIterable, Awaitable, Callable

# Of one stream, read but not yet answered. Enough for two batches of the largest buckets; a
# client that does not read its answers holds no more.
UNDER_WAY = 256


class Stream:
    """Answers the requests of one stream, in whatever order they get ready.

    Whoever has an answer writes it, and those that get ready meanwhile, unless somebody
    already writes: no task has to be woken only to write.

    Args:
      answer: gives the answer to a request; raises nothing.
      write: sends an answer; called again only once it has.
      under_way: requests that are read before one of them is answered.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Awaitable[bytes]],
        write: Callable[[bytes], Awaitable[object]],
        under_way: int = UNDER_WAY,
    ) -> None:
        self._answer = answer
        self._write = write
        self._room = asyncio.Semaphore(under_way)
        self._ready: collections.deque[bytes] = collections.deque()
        self._writing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[object] | None = None
        self._reading = False
        self._error: Exception | None = None

    async def run(self, requests: AsyncIterable[bytes]) -> bool:
        """Answer until the client has no more requests; cancelling gives all of them up.

        Returns:
          Whether it was the client that ended it, and not `stop`.

        Raises:
          Exception: what `write` raised.
        """
        self._reader = asyncio.current_task()
        try:
            ended = await self._read(requests)
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
        if self._error is not None:
            raise self._error
        return ended

    def stop(self) -> None:
        """Read no more requests; those that were read are answered."""
        if self._reading and self._reader is not None:
            self._reading = False
            self._reader.cancel()

    async def _read(self, requests: AsyncIterable[bytes]) -> bool:
        loop = asyncio.get_running_loop()
        self._reading = True
        try:
            async for request in requests:
                await self._room.acquire()
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

    async def _one(self, request: bytes) -> None:
        self._ready.append(await self._answer(request))
        if self._writing:
            return
        self._writing = True
        while self._ready:
            answer = self._ready.popleft()
            try:
                await self._write(answer)
            except Exception as error:  # noqa: BLE001 (its client has gone; gRPC ends the stream)
                self._error = error
            self._room.release()
        self._writing = False
