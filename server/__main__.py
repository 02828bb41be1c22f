"""`python -m server`: serve a bundle; `bench` behind it loads one, `doctor` examines it.

1. the configuration is read
2. the ports are bound and requests are accepted; the health route answers 503
3. the bundle is loaded on a thread of its own, and proven: `opening`
4. the health route answers 200
5. a signal ends it: `process`

`--help` has the exit statuses.
"""

# Little is imported before signals are seen to.
import os
import signal
import sys

from server import signals

if __name__ == "__main__":  # who only imports this has signals and streams of their own
    # Where one of these is closed, the next socket would be it, and get what is written to it.
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.argv[1:2] not in (["bench"], ["doctor"]):
        signals.ignore()
    # What follows takes seconds, in which Python would answer an interrupt with a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getpid() == 1:
        # A container's first process gets only the signals it handles.
        for number in (*signals.DRAIN, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))

import asyncio
import contextlib
import dataclasses
import errno
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from runtime.commandline import needing, reading_settings

with needing("server"), reading_settings():
    import uvloop

    from runtime.program import compute_with
    from server import bench, doctor, logs
    from server.config import ConfigError, ServerConfig
    from server.cores import cores_here, share
    from server.http_server import listen
    from server.options import parse
    from server.process import Process

EXIT_CONFIG = 2


def main(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Serve until a signal, and end the process."""
    try:
        config = parse(argv, environ)
        config = _with_free_ports(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        logs.leave(EXIT_CONFIG)
    logs.set_up(config.log_format, config.trace_project)
    compute_with(share(config.processes, cores_here()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))


async def _serve(config: ServerConfig) -> None:
    # Ended from in here: asyncio would wait for the thread that loads.
    try:
        status = await Process(config, logs.leave).serve()
    except ConfigError as error:
        logs.end(config.log_format, error)
        status = EXIT_CONFIG
    logs.leave(status)


def _with_free_ports(config: ServerConfig) -> ServerConfig:
    """Refuse ports that are taken, before anything is loaded; choose those that may be any.

    Raises:
      ConfigError: names the address, what is wrong with it and the option that says another.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        for name, other in (("port", "--port"), ("grpc_port", "--grpc-port, or -1 for none")):
            port = getattr(config, name)
            if port >= 0:
                try:
                    listener = stack.enter_context(listen(config.host, port))
                except OSError as error:
                    raise ConfigError(_refused(config.host, port, other, error)) from None
                found[name] = listener.getsockname()[1]
    return dataclasses.replace(config, **found)


def _refused(host: str, port: int, other: str, error: OSError) -> str:
    ports = error.errno in (errno.EADDRINUSE, errno.EACCES)
    hint = f"pass another {other if ports else '--host'}"
    reason = str(error.strerror).partition(" (while")[0]  # the rest repeats the address
    return f"listen on {host} port {port}: {reason}; {hint}"


def _tool(run: Callable[[Sequence[str], Mapping[str, str]], int]) -> NoReturn:
    """Run what asks a server; an interrupt ends it once that is ended, without a word."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(run(sys.argv[2:], os.environ))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise


if __name__ == "__main__":
    if sys.argv[1:2] == ["bench"]:
        _tool(bench.main)
    if sys.argv[1:2] == ["doctor"]:
        _tool(doctor.main)
    logs.take_streams()
    main(sys.argv[1:], os.environ)
