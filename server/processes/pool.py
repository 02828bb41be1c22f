"""The worker pool: starts and supervises the worker processes of `--processes N`."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import signal
import socket
import subprocess
from collections.abc import Callable

from runtime.child_process import module_command
from server import signals
from server.config import ServerConfig
from server.observability.shared_stats import SharedStats

log = logging.getLogger("server")

# How long to wait for workers to end, beyond their own drain timeout, before SIGKILL.
_KILL_AFTER_S = 5.0

DIGEST_BYTES = 64


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerArgs:
    """The arguments of a worker process, on its command line as JSON.

    Attributes:
      slot: its own in the shared statistics, from 1.
      stats_fd: descriptor of the shared memory.
      config: of the first process; the digest to require comes later.
    """

    slot: int
    stats_fd: int
    config: ServerConfig

    def write(self) -> str:
        """Return them as a command-line argument."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> "WorkerArgs":
        """Return the arguments that `write` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "config": ServerConfig(**fields["config"])})


class WorkerPool:
    """Starts worker processes, forwards signals to them, and supervises them.

    Args:
      stats: the shared statistics, with a slot for each.
      on_exit: called with the exit status of a worker that ended without a signal from here.
    """

    def __init__(self, stats: SharedStats, on_exit: Callable[[int], object]) -> None:
        self._stats = stats
        self._on_exit = on_exit
        self._signalled = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        self._listening: list[asyncio.Future[None]] = []
        self._supervisors: list[asyncio.Task[int]] = []

    def start(self, config: ServerConfig) -> None:
        """Start all workers, which import what they need and wait for the bundle's digest.

        Args:
          config: of each worker; `processes` counts the first process as well.
        """
        loop = asyncio.get_running_loop()
        for slot in range(1, config.processes):
            process, connection = self._start(WorkerArgs(slot, self._stats.fd, config))
            listens = loop.create_future()
            self._connections.append(connection)
            self._listening.append(listens)
            self._processes.append(process)
            supervisor = loop.create_task(self._supervise(process, connection, listens))
            self._supervisors.append(supervisor)

    def load(self, digest: str) -> None:
        """Have all workers load the bundle of this digest, check it, and wait.

        Args:
          digest: SHA-256 in hex of the manifest that the first process validated.
        """
        self._send(digest.encode("ascii"))

    async def listen(self) -> None:
        """Have all workers listen, if there are some; return once each does, never if one ends before."""
        if not self._processes:
            return
        self._send(b"\n")
        await asyncio.gather(*self._listening)
        log.info("processes: %d", len(self._processes) + 1)

    def _send(self, message: bytes) -> None:
        # Far less than a socket's buffer holds.
        for connection in self._connections:
            with contextlib.suppress(OSError):  # the worker has ended, which its supervisor sees
                connection.send(message)

    @staticmethod
    def _start(args: WorkerArgs) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # A worker's Python would answer an interrupt with a traceback until the worker handles it.
        with theirs, signals.interrupt_blocked():
            process = subprocess.Popen(  # noqa: S603 (our own command)
                [*module_command("server.worker"), args.write()],
                stdin=theirs.fileno(),
                pass_fds=(args.stats_fd,),
                process_group=0,  # a terminal's signals are for the first process alone
            )
        return process, ours

    async def _supervise(
        self,
        process: "subprocess.Popen[bytes]",
        connection: socket.socket,
        listens: "asyncio.Future[None]",
    ) -> int:
        """Wait until a worker listens, and until it ends; return its exit status."""
        loop = asyncio.get_running_loop()
        # A worker that ends before it has read that it may listen resets the connection.
        with connection, contextlib.suppress(ConnectionResetError):
            while await loop.sock_recv(connection, 1):
                if not listens.done():
                    listens.set_result(None)
        code = await asyncio.to_thread(process.wait)
        if self._signalled and code in (-signal.SIGTERM, -signal.SIGINT):
            return 0  # it did not listen yet
        status = code if code >= 0 else 128 - code
        if not self._signalled:
            log.critical("process %d ended with status %d", process.pid, status)
            self._on_exit(status)
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send all workers a signal that ends them."""
        self._signalled = True
        for process in self._processes:
            process.send_signal(number)

    async def ended(self) -> int:
        """Wait until all workers have ended, then kill the rest; return the highest status."""
        if self._supervisors:
            _, late = await asyncio.wait(self._supervisors, timeout=_KILL_AFTER_S)
            if late:
                self.signal(signal.SIGKILL)
        return max(await asyncio.gather(*self._supervisors), default=0)
