"""The application for any WSGI server: `gunicorn --threads 16 'server.wsgi:create()'`.

Configured by the environment alone; see `python -m server --help` for the variables. Each
process serves by itself: it has an event loop on a separate thread and
loads the bundle there, after the fork, since JAX does not survive one. Batches form among
the requests of one process, so more threads serve a GPU better than more processes.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask

from runtime.program import set_cpu_threads
from server import logs
from server.batching.service import Service
from server.config import ServerConfig
from server.cpu_limits import cores_here
from server.http.cors import Cors
from server.http.flask_app import create_app, make_wait
from server.http.routes import make_routes
from server.options import parse
from server.startup import EXIT_DEVICE, open_service, watch_files

log = logging.getLogger("server")


class Application:
    """A WSGI application that begins to load at `start`, or when it is first called.

    Args:
      config: what to serve; host and port are the WSGI server's.
      exit_process: ends the process with a status, at once.
    """

    def __init__(
        self, config: ServerConfig, exit_process: Callable[[int], object] = os._exit
    ) -> None:
        self._config = config
        self._exit_process = exit_process
        self._starting = threading.Lock()
        self._app: tuple[int, Flask] | None = None

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request; see PEP 3333."""
        return self.start()(environ, start_response)

    def start(self) -> Flask:
        """Begin to load, unless this process has already; return the application at once."""
        with self._starting:
            # In a process that was forked from one that started there is no loop.
            if self._app is None or self._app[0] != os.getpid():
                self._app = os.getpid(), self._begin()
            return self._app[1]

    def on_fatal(self, _: str) -> None:
        """End the process, whose device is lost."""
        self._exit_process(EXIT_DEVICE)

    def on_hang(self) -> None:
        """End the process, whose loop hangs in the device."""
        self._exit_process(EXIT_DEVICE)

    def _begin(self) -> Flask:
        loop = asyncio.new_event_loop()
        service = Service(self._config.limits, self)

        async def open_() -> None:
            failed = await open_service(service, self._config)
            self._exit_process(failed or await watch_files(service, self._config))

        routes = make_routes(service, self._config)
        cors = Cors(self._config.origins)
        app = create_app(service, routes, self._config.bodies, make_wait(loop), cors)
        threading.Thread(target=loop.run_forever, name="loop", daemon=True).start()
        asyncio.run_coroutine_threadsafe(open_(), loop)
        return app


def create() -> Application:
    """Return the application that the environment describes.

    Raises:
      ConfigError: names the variable, what it takes and what it got.
    """
    config = parse([], os.environ)
    logs.set_up(config.log_format, config.trace_project)
    set_cpu_threads(cores_here())
    return Application(config)
