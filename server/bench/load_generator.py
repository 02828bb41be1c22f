"""The load generator: one request after the other on each connection, responses checked.

Written on the bare protocol class of asyncio, since what the client spends is lost to
the same machine as the server's share; it takes about a tenth of what the server takes.
"""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, override


@dataclasses.dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a load.

    Attributes:
      connections: at once.
      seconds: for which it was measured.
      latencies: of the requests that were answered with 200, in seconds, increasing.
      failed: requests that were answered otherwise, or not.
    """

    connections: int
    seconds: float
    latencies: tuple[float, ...]
    failed: int

    @property
    def per_second(self) -> float:
        """Return the requests answered per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """Return the latency quantile of a share of the requests, in seconds."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class _Connection(asyncio.Protocol):
    """Sends one request after the other, each after the last one's response, until `stop`."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._received = b""
        self._sent = 0.0
        self._stopping = False
        self._transport: Any = None
        self.latencies: list[float] = []
        self.failed = 0
        self.closed = asyncio.get_running_loop().create_future()

    @override
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    @override
    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        if head.startswith(b"HTTP/1.1 200"):
            self.latencies.append(time.perf_counter() - self._sent)
        else:
            self.failed += 1
        self._received = b""
        self._send()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopping:
            self.failed += 1
        self.closed.set_result(None)

    def reset(self) -> None:
        """Discard the measurements so far."""
        self.latencies = []
        self.failed = 0

    def stop(self) -> None:
        """Send no more requests."""
        self._stopping = True

    def _send(self) -> None:
        if self._stopping:
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(next(self._requests))


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0])


def post(path: str, body: bytes) -> bytes:
    """Return a POST request of JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def send(
    host: str, port: int, requests: Sequence[bytes], connections: int, seconds: float
) -> LoadResult:
    """Send requests, in turn, and measure after a fifth of the time.

    Args:
      host: of the server.
      port: of the server.
      requests: whole, as they go over the wire.
      connections: each has one request under way at a time.
      seconds: for which to measure.

    Raises:
      OSError: no server listens there.
    """
    loop = asyncio.get_running_loop()
    turns = itertools.cycle(requests)
    clients = [
        (await loop.create_connection(lambda: _Connection(turns), host, port))[1]
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds / 5)
    for client in clients:
        client.reset()
    begin = time.perf_counter()
    await asyncio.sleep(seconds)
    taken = time.perf_counter() - begin
    latencies = sorted(itertools.chain.from_iterable(c.latencies for c in clients))
    failed = sum(client.failed for client in clients)
    for client in clients:
        client.stop()
    await asyncio.wait([client.closed for client in clients], timeout=60)
    return LoadResult(connections, taken, tuple(latencies), failed)
