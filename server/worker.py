"""A worker process: one of the further processes of `--processes N`; `workers` starts it.

It loads the bundle that the first process has loaded, checks it on its own, and when the first
process says that it may, listens on the same port and reports that it does. Its standard input is a
socket to the first process, which closes when that process ends; then the worker ends as well.
"""

# As little as possible is imported before signal handlers are set.
import sys

from server import signals

if __name__ == "__main__":  # an importing program keeps its own signals
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
    """Serve until the first process ends it, or is gone."""
    args = WorkerArgs.read(argv[0])
    logs.take_streams()
    logs.set_up(args.config.log_format, args.config.trace_project)
    # The first process has logged all this already.
    logging.getLogger().setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        logs.exit_process(runner.run(_serve(args)))


async def _serve(args: WorkerArgs) -> int:
    parent = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    parent.setblocking(False)
    loop = asyncio.get_running_loop()
    stats = SharedStats(args.stats_fd, args.config.processes, args.slot)
    process = Process(
        args.config, logs.exit_process, stats, on_listening=lambda: parent.send(b"\n")
    )

    def on_readable() -> None:
        try:
            received = parent.recv(1)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if received:
            process.may_listen()
        else:
            loop.remove_reader(parent)
            process.parent_died()

    loop.add_reader(parent, on_readable)
    return await process.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
