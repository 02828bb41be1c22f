"""A worker process: one of the further processes of `--processes N`; `workers` starts it.

Its standard input is a socket to the first process. From there come the digest of the bundle once the
first process has loaded it, which the worker then loads and checks on its own, and one byte when it
may listen on the same port, which it answers with one byte when it does. The socket closes when the
first process ends; then the worker ends as well.
"""

# As little as possible is imported before signal handlers are set.
import sys

from server import signals

if __name__ == "__main__":  # an importing program keeps its own signals
    signals.end_at_interrupt()

import asyncio
import dataclasses
import logging
import os
import socket
from collections.abc import Sequence

import uvloop

from server import logs
from server.lifecycle import Process
from server.observability.shared_stats import SharedStats
from server.processes.pool import DIGEST_BYTES, WorkerArgs
from server.startup import EXIT_DEVICE


def main(argv: Sequence[str]) -> None:
    """Serve until the first process ends it, or is gone."""
    args = WorkerArgs.read(argv[0])
    logs.take_streams()
    logs.set_up(args.config.log_format, args.config.trace_project)
    # The first process has logged all this already.
    logging.getLogger().setLevel(logging.WARNING)
    parent = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    digest = parent.recv(DIGEST_BYTES, socket.MSG_WAITALL).decode("ascii")
    if len(digest) < DIGEST_BYTES:  # the first process is gone, and has said why
        logs.exit_process(EXIT_DEVICE)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        logs.exit_process(runner.run(_serve(args, parent, digest)))


async def _serve(args: WorkerArgs, parent: socket.socket, digest: str) -> int:
    parent.setblocking(False)
    loop = asyncio.get_running_loop()
    config = dataclasses.replace(args.config, require_digest=f"sha256:{digest}")
    stats = SharedStats(args.stats_fd, config.processes, args.slot)
    process = Process(config, logs.exit_process, stats, on_listening=lambda: parent.send(b"\n"))

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
