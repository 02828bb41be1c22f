"""What runs in a further process of a server that has several; `joiners` starts it.

It loads the bundle that the first process has proven, proves it for itself, listens where the
first one does, and says so. It ends with the first one, whose end of its standard input closes.
"""

# Little is imported before signals are seen to.
import sys

from server import signals

if __name__ == "__main__":  # who only imports this has signals of their own
    signals.end_at_interrupt()

import asyncio
import logging
import os
import socket
from collections.abc import Sequence

import uvloop

from server import logs
from server.lifecycle import Process
from server.observability.shared_stats import SharedStats
from server.workers import WorkerArgs


def main(argv: Sequence[str]) -> None:
    """Serve until the first process has it end, or is gone."""
    orders = WorkerArgs.read(argv[0])
    logs.take_streams()
    logs.set_up(orders.config.log_format, orders.config.trace_project)
    # The first process has said all this already.
    logging.getLogger().setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        logs.leave(runner.run(_serve(orders)))


async def _serve(orders: WorkerArgs) -> int:
    first = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    first.setblocking(False)
    loop = asyncio.get_running_loop()
    board = SharedStats(orders.stats_fd, orders.config.processes, orders.slot)
    process = Process(orders.config, logs.leave, board, joined=lambda: first.send(b"\n"))

    def left() -> None:
        loop.remove_reader(first)
        process.leave()

    loop.add_reader(first, left)  # nothing is ever sent: it closes
    return await process.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
