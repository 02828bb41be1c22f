"""The further processes of a server that has several, as the first one sees them."""

import asyncio
import dataclasses
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

from server.config import ServerConfig
from server.observability.shared_stats import SharedStats

log = logging.getLogger("server")

# The longest that one that has been told to end is waited for, beyond its own time.
_SPARE_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerArgs:
    """What a further process is told on its command line.

    Attributes:
      slot: on the board, from 1.
      stats_fd: descriptor of its memory.
      config: as the first process has it, but for what that one has found out.
    """

    slot: int
    stats_fd: int
    config: ServerConfig

    def write(self) -> str:
        """Write them as an argument."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> "WorkerArgs":
        """Read what `write` wrote."""
        told = json.loads(text)
        return cls(told["slot"], told["stats_fd"], ServerConfig(**told["config"]))


class WorkerPool:
    """Starts them, passes signals on, and notices when one ends.

    Args:
      board: has a place for each.
      lost: called with the exit status of one that ended untold.
    """

    def __init__(self, board: SharedStats, lost: Callable[[int], object]) -> None:
        self._board = board
        self._lost = lost
        self._told = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ends: list[asyncio.Task[int]] = []

    async def start(self, config: ServerConfig) -> None:
        """Start all of them; returns once each listens, never if one ends before.

        Args:
          config: for them.
        """
        loop = asyncio.get_running_loop()
        listening = []
        for place in range(1, config.processes):
            process, line = self._start(WorkerArgs(place, self._board.fd, config))
            listens = loop.create_future()
            listening.append(listens)
            self._processes.append(process)
            self._ends.append(loop.create_task(self._supervise(process, line, listens)))
        await asyncio.gather(*listening)
        log.info("processes: %d", config.processes)

    @staticmethod
    def _start(orders: WorkerArgs) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(  # noqa: S603 (our own)
                [sys.executable, "-m", "server.worker", orders.write()],
                stdin=theirs.fileno(),
                pass_fds=(orders.stats_fd,),
                process_group=0,  # a terminal's signals are for the first process alone
            )
        return process, ours

    async def _supervise(
        self,
        process: "subprocess.Popen[bytes]",
        line: socket.socket,
        listens: "asyncio.Future[None]",
    ) -> int:
        """Wait until one listens, and until it ends; gives its exit status."""
        loop = asyncio.get_running_loop()
        with line:
            while await loop.sock_recv(line, 1):
                if not listens.done():
                    listens.set_result(None)
        code = await asyncio.to_thread(process.wait)
        if self._told and code in (-signal.SIGTERM, -signal.SIGINT):
            return 0  # it did not listen yet
        status = code if code >= 0 else 128 - code
        if not self._told:
            log.critical("process %d ended with status %d", process.pid, status)
            self._lost(status)
        return status

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on that ends them."""
        self._told = True
        for process in self._processes:
            process.send_signal(number)

    async def ended(self) -> int:
        """Wait until they have ended, for as long as they may take; give the worst status."""
        if self._ends:
            _, late = await asyncio.wait(self._ends, timeout=_SPARE_S)
            if late:
                self.signal(signal.SIGKILL)
        return max(await asyncio.gather(*self._ends), default=0)
