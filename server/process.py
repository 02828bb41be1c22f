"""The server's process: what runs in it, how it begins and how it ends."""

import asyncio
import logging
import signal
from collections.abc import Callable

from server.config import ServerConfig
from server.grpc_api import Entrance
from server.http_app import create_app, make_wait
from server.http_front import Front
from server.http_server import HttpServer, listen
from server.opening import EXIT_BUNDLE, EXIT_DEVICE, open_service
from server.routes import hot_paths, make_routes
from server.service import Service

log = logging.getLogger("server")

EXIT_UNANSWERED = 1


class Process:
    """Serves until a signal, or until there is nothing to serve.

    The first SIGTERM drains: for a while the server answers on but is not ready, so that
    load balancers turn away; then it takes no more, answers what it has, and ends. SIGINT
    leaves the while out. A second signal ends the process where it stands.

    Args:
      config: what to serve, and where.
      die: ends the process with a status, at once.
    """

    def __init__(self, config: ServerConfig, die: Callable[[int], None]) -> None:
        self._config = config
        self._die = die
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._gently = False
        self._service = Service(
            config.limits,
            fatal=lambda _: self._end(EXIT_DEVICE),
            hung=lambda: die(EXIT_DEVICE),
        )
        self._routes = make_routes(self._service, config)
        app = create_app(self._service, self._routes, config.bodies, make_wait(self._loop))
        self._front = Front(app, self._service, config.bodies, threads=8)
        self._http = HttpServer(self._front, listen(config.host, config.port))
        self._grpc = Entrance(self._service, config) if config.grpc_port >= 0 else None

    async def serve(self) -> int:
        """Serve; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled, number)
        if self._grpc is not None:
            await self._grpc.start()
        serving = self._loop.create_task(self._http.serve())
        # It returns only where it broke.
        serving.add_done_callback(lambda _: self._end(EXIT_DEVICE))
        opening = self._loop.create_task(self._open())
        opening.add_done_callback(self._opened)
        status = await self._ended
        opening.cancel()
        if self._gently and self._service.loaded:
            log.info("draining: answering on for %.3g s", self._config.drain_delay_s)
            self._service.drain()
            await asyncio.sleep(self._config.drain_delay_s)
        return await self._stop(status, serving)

    async def _open(self) -> None:
        if failed := await open_service(self._service, self._config, listening=True):
            self._end(failed)
        else:
            self._front.hot = hot_paths(self._service, self._routes)

    def _opened(self, opening: "asyncio.Task[None]") -> None:
        if not opening.cancelled() and (error := opening.exception()) is not None:
            log.critical("the model could not be opened", exc_info=error)
            self._end(EXIT_BUNDLE)

    async def _stop(self, status: int, serving: "asyncio.Task[None]") -> int:
        """Answer what there is, within its time; returns the exit status."""
        self._service.stop()
        try:
            async with asyncio.timeout(self._config.drain_timeout_s):
                await self._service.drained()
                if self._grpc is not None:
                    await self._grpc.stop(self._config.drain_timeout_s)
                serving.cancel()
                await self._http.stop()
        except TimeoutError:
            log.error("stopping with %d requests unanswered", self._service.abandon())  # noqa: TRY400
            await asyncio.sleep(0.1)  # their refusals go out
            return status or EXIT_UNANSWERED
        log.info("stopped")
        return status

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _signalled(self, number: signal.Signals) -> None:
        if self._ended.done():
            self._die(EXIT_UNANSWERED)
        log.info("received %s", number.name)
        self._gently = number is signal.SIGTERM
        self._end(0)
