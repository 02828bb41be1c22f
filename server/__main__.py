"""`python -m server`: the one place that wires things. See `--help`.

1. the configuration is read
2. the port is bound and requests are accepted; the health route answers 503
3. the bundle is loaded on a thread of its own, and its goldens are run
4. the health route answers 200

Exit statuses: 0 stopped, 2 configuration, 3 bundle, 4 golden mismatch, 5 device.
"""

import asyncio
import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence

from runtime.errors import BundleError, DeviceUnavailable, ExecutionError, GoldenMismatch
from runtime.model import Model, load
from runtime.verify import check_goldens
from server import vertex
from server.config import ConfigError, ServerConfig, parse
from server.http_app import create_app
from server.http_front import Front, make_server
from server.service import Limits, Service

log = logging.getLogger("server")

EXIT_CONFIG, EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 2, 3, 4, 5


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Serve until a signal; returns the exit status."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)  # it lists every absent backend
    try:
        config = parse(argv, environ)
        _refuse_taken_port(config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG
    return asyncio.run(_serve(config))


async def _serve(config: ServerConfig) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    service = Service(_limits(config), fatal=lambda _: end(EXIT_DEVICE))
    app = create_app(
        service, config, lambda call: asyncio.run_coroutine_threadsafe(call, loop).result()
    )
    hot = {config.predict_route: functools.partial(vertex.predict, service)}
    server = make_server(
        Front(app, hot, config.max_body_bytes, threads=8), config.host, config.port
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    serving = loop.create_task(server.serve())
    loading = loop.create_task(_open(service, config))

    def loaded(task: asyncio.Task[int]) -> None:
        if task.cancelled() or task.result():
            end(EXIT_BUNDLE if task.cancelled() else task.result())

    loading.add_done_callback(loaded)
    status = await ended
    service.drain()
    await service.drained()
    server.stop()
    await serving
    service.close()
    return status


def _limits(config: ServerConfig) -> Limits:
    return Limits(
        queue_rows=config.max_queue_rows,
        request_rows=config.max_request_rows,
        queue_delay_s=config.max_queue_delay_ms / 1e3,
        timeout_s=config.request_timeout_ms / 1e3,
    )


async def _open(service: Service, config: ServerConfig) -> int:
    """Load the bundle and prove it; returns 0, or the exit status of what is wrong."""
    begin = time.monotonic()
    try:
        model = await asyncio.to_thread(_load, config)
    except GoldenMismatch as error:
        return _failed(error, EXIT_GOLDEN)
    except (DeviceUnavailable, ExecutionError) as error:
        return _failed(error, EXIT_DEVICE)
    except BundleError as error:
        return _failed(error, EXIT_BUNDLE)
    service.open(model)
    log.info(
        "ready: http://%s:%d%s serves %s version %s, buckets %s, on %s, after %.1f s",
        config.host,
        config.port,
        config.predict_route,
        model.manifest.name,
        model.manifest.version,
        ",".join(map(str, model.manifest.buckets)),
        model.platform,
        time.monotonic() - begin,
    )
    return 0


def _load(config: ServerConfig) -> Model:
    model = load(config.bundle, config.device or None, progress=log.info)
    _check(model)
    return model


def _check(model: Model) -> None:
    failed = [str(check) for check in check_goldens(model)[0] if not check.ok]
    if failed:
        raise GoldenMismatch(
            f"{len(failed)} golden checks failed on this device, first: {failed[0]}"
        )


def _failed(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status


def _refuse_taken_port(config: ServerConfig) -> None:
    """Refuse a port that is taken: granian would share it silently (SO_REUSEPORT)."""
    try:
        with socket.create_server((config.host, config.port)):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"listen on {config.host}:{config.port}: {reason}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
