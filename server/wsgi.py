"""The application for any WSGI server: `gunicorn --threads 16 'server.wsgi:create()'`.

Configured by the environment alone; see `python -m server --help` for the variables. Each
process that is called answers by itself: it has an event loop on a thread of its own and
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
from server.startup import EXIT_DEVICE, open_service, unfit

log = logging.getLogger("server")


class Application:
    """A WSGI application that begins to load when it is first called, or told to.

    Args:
      config: what to serve; host and port are the WSGI server's.
      die: ends the process with a status.
    """

    def __init__(self, config: ServerConfig, die: Callable[[int], object] = os._exit) -> None:
        self._config = config
        self._die = die
        self._starting = threading.Lock()
        self._app: tuple[int, Flask] | None = None

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request; see PEP 3333."""
        return self.start()(environ, start_response)

    def start(self) -> Flask:
        """Begin to load, unless this process has already; returns at once."""
        with self._starting:
            # In a process that was forked from one that started there is no loop.
            if self._app is None or self._app[0] != os.getpid():
                self._app = os.getpid(), self._begin()
            return self._app[1]

    def _begin(self) -> Flask:
        loop = asyncio.new_event_loop()

        def give_up(*_: str) -> None:
            self._die(EXIT_DEVICE)

        service = Service(self._config.limits, fatal=give_up, hung=give_up)

        async def open_() -> None:
            failed = await open_service(service, self._config)
            self._die(failed or await unfit(service, self._config))

        routes = make_routes(service, self._config)
        cors = Cors(self._config.origins)
        app = create_app(service, routes, self._config.bodies, make_wait(loop), cors)
        threading.Thread(target=loop.run_forever, name="loop", daemon=True).start()
        asyncio.run_coroutine_threadsafe(open_(), loop)
        return app


def create() -> Application:
    """Make the application that the environment describes.

    Raises:
      ConfigError: names the variable, what it takes and what it got.
    """
    config = parse([], os.environ)
    logs.set_up(config.log_format, config.trace_project)
    set_cpu_threads(cores_here())
    return Application(config)
