"""`python -m server`: serve a bundle; `python -m server bench`: load one. See `--help`.

1. the configuration is read
2. the ports are bound and requests are accepted; the health route answers 503
3. the bundle is loaded on a thread of its own, and proven: `opening`
4. the health route answers 200
5. a signal ends it: `process`

Exit statuses: 0 stopped, 1 stopped before everything was answered, 2 configuration, 3 bundle,
4 golden mismatch, 5 device.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import uvloop

from server import bench, logs
from server.config import ConfigError, ServerConfig, parse
from server.process import Process

log = logging.getLogger("server")

EXIT_CONFIG = 2


def main(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Serve until a signal, and end the process."""
    try:
        config = parse(argv, environ)
        config = _with_free_ports(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        _exit(EXIT_CONFIG)
    logs.set_up(config.log_format)
    log.info("configuration: %s", config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))


async def _serve(config: ServerConfig) -> None:
    # Ended from in here: asyncio would wait for the thread that loads.
    try:
        status = await Process(config, _exit).serve()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_CONFIG
    _exit(status)


def _exit(status: int) -> NoReturn:
    """End the process now; threads that load, run or read may not end by themselves."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _with_free_ports(config: ServerConfig) -> ServerConfig:
    """Refuse ports that are taken; choose those that may be any.

    granian would share one silently (SO_REUSEPORT).
    """
    found = {}
    with contextlib.ExitStack() as stack:
        for name in ("port", "grpc_port"):
            port = getattr(config, name)
            if port >= 0:
                listener = stack.enter_context(_listen(config.host, port))
                found[name] = listener.getsockname()[1]
    return dataclasses.replace(config, **found)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"listen on {host}:{port}: {reason}") from None


if __name__ == "__main__":
    if sys.argv[1:2] == ["bench"]:
        sys.exit(bench.main(sys.argv[2:], os.environ))
    main(sys.argv[1:], os.environ)
