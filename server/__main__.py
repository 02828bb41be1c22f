"""`python -m server`: serve a bundle. `bench` runs a load test against a server, `doctor` checks one.

1. the configuration is parsed: `options`
2. the ports are bound and requests are accepted; the health route answers 503: `lifecycle`
3. the bundle is loaded on a separate thread, and validated: `startup`
4. the health route answers 200
5. a signal ends it: `lifecycle`

`--help` has the exit statuses.
"""

# As little as possible is imported before signal handlers are set.
import os
import signal
import sys

from server import signals

if __name__ == "__main__":  # an importing program keeps its own signals and streams
    # Where one of these is closed, the next socket would get its number, and what is written to it.
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.argv[1:2] not in (["bench"], ["doctor"]):
        signals.ignore()
    # The imports take seconds, in which Python would answer an interrupt with a traceback.
    signals.end_at_interrupt()
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
from runtime.invocation import error_line

with needing("server"):
    from server import logs
    from server.bench import cli as bench
    from server.config import ConfigError, ServerConfig
    from server.doctor import cli as doctor
    from server.options import parse

_HELP = {"-h", "--help", "--version"}


def _tool(run: Callable[[Sequence[str], Mapping[str, str]], int]) -> NoReturn:
    """Run a client command and exit with its status; an interrupt ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(run(sys.argv[2:], os.environ))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise


def _run_tools() -> None:
    """Run the client command that the command line begins with, if it does."""
    if sys.argv[1:2] == ["bench"]:
        _tool(bench.main)
    if sys.argv[1:2] == ["doctor"]:
        _tool(doctor.main)


# Help is given before JAX is imported, which takes a second.
if __name__ == "__main__" and not _HELP.isdisjoint(sys.argv[1:]):
    _run_tools()
    with contextlib.suppress(ConfigError):  # which is reported below
        parse(sys.argv[1:], {})

with needing("server"), reading_settings():
    import uvloop

    from runtime.program import set_cpu_threads
    from server.cpu_limits import cores_here, share
    from server.http.listener import listen
    from server.lifecycle import Process
    from server.processes.count import possible

EXIT_CONFIG = 2


def main(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Serve until a signal, and exit the process."""
    try:
        config = parse(argv, environ)
        config = _with_free_ports(config)
    except ConfigError as error:
        print(error_line(error), file=sys.stderr)
        logs.exit_process(EXIT_CONFIG)
    logs.set_up(config.log_format, config.trace_project)
    if possible(config) == 1:
        config = dataclasses.replace(config, processes=1)
    # One that finds out the number as it starts begins with all cores.
    set_cpu_threads(share(max(1, config.processes), cores_here()))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))


async def _serve(config: ServerConfig) -> None:
    # Exit from inside the loop: asyncio would wait for the thread that loads.
    try:
        status = await Process(config, logs.exit_process).serve()
    except ConfigError as error:
        logs.report_fatal(config.log_format, error)
        status = EXIT_CONFIG
    logs.exit_process(status)


def _with_free_ports(config: ServerConfig) -> ServerConfig:
    """Return the configuration with a free port for each port 0, before anything is loaded.

    Raises:
      ConfigError: an address cannot be bound; names it, the reason and the option to change.
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


if __name__ == "__main__":
    _run_tools()
    logs.take_streams()
    main(sys.argv[1:], os.environ)
