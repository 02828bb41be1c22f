"""The server's process: what runs in it, how it begins and how it ends."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import signal
from collections.abc import Callable

from runtime.scratch import passing
from server import logs, signals
from server.board import Board
from server.config import ServerConfig
from server.cors import Cors
from server.grpc_api import Entrance
from server.http_app import create_app, make_wait
from server.http_front import Front
from server.http_server import GRACE_S, HttpServer, listen
from server.intact import BusErrors
from server.joiners import Joiners
from server.opening import EXIT_BUNDLE, EXIT_DEVICE, Opened, open_service, unfit
from server.routes import hot_paths, make_routes
from server.service import Service

log = logging.getLogger("server")

EXIT_UNANSWERED = 1
# How long refusals have to go out to who was not answered in time.
_REFUSALS_S = 1.0


class Process:
    """Serves until a signal, or until there is nothing to serve.

    The first SIGTERM drains: for a while the server answers on but is not ready, so that
    load balancers turn away; then it takes no more, answers what it has, and ends. So do the
    others of `signals.DRAIN`; SIGINT leaves the while out. A second SIGTERM or SIGINT ends the
    process where it stands.

    Of several processes the first one listens at once, and has the others begin when it has
    proven the bundle; when they listen as well, it is ready. What ends one ends all.

    Args:
      config: what to serve, and where.
      die: ends the process with a status, at once.
      board: of any but the first of several processes.
      joined: of any but the first; called once it listens, which it does when it can answer.
    """

    def __init__(
        self,
        config: ServerConfig,
        die: Callable[[int], None],
        board: Board | None = None,
        joined: Callable[[], object] | None = None,
    ) -> None:
        self._die = die
        self._joined = joined
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._gently = self._insisted = False
        self._service = Service(
            config.limits,
            fatal=lambda _: self._end(EXIT_DEVICE),
            hung=lambda: die(EXIT_DEVICE),
        )
        self._config = config
        self._bus_errors = BusErrors(
            self._expect_unwritten,
            functools.partial(logs.end, config.log_format),
            functools.partial(die, EXIT_BUNDLE),
        )
        self._joiners: Joiners | None = None
        gather = None
        if config.processes > 1:
            board = board or Board(None, config.processes, 0)
            gather = functools.partial(board.gather, self._service)
            if joined is None:
                self._joiners = Joiners(board, self._lost)
        self._board = board
        self._routes = make_routes(self._service, config, gather)
        cors = Cors(config.origins)
        app = create_app(self._service, self._routes, config.bodies, make_wait(self._loop), cors)
        self._front = Front(app, self._service, config.bodies, threads=8, cors=cors)
        self._http: HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc = Entrance(self._service, config, gather) if config.grpc_port >= 0 else None

    async def serve(self) -> int:
        """Serve; returns the exit status."""
        self._bus_errors.install()
        for number in (*signals.DRAIN, signal.SIGINT):
            if signals.wanted(number):
                self._loop.add_signal_handler(number, self._signalled, number)
        if self._joined is None:
            await self._listen()
        opening = self._loop.create_task(self._open())
        opening.add_done_callback(self._opened)
        status = await self._ended
        opening.cancel()
        if self._joiners is not None:
            self._joiners.signal(signal.SIGTERM if self._gently else signal.SIGINT)
        if self._gently and self._service.loaded:
            log.info("draining: answering on for %.3g s", self._config.drain_delay_s)
            self._service.drain()
            await asyncio.sleep(self._config.drain_delay_s)
        status = await self._stop(status)
        if self._joiners is not None:
            status = status or await self._joiners.ended()
        return status

    def leave(self) -> None:
        """End: the first of the processes is gone."""
        log.critical("the first process is gone")
        self._end(EXIT_DEVICE)

    async def _listen(self) -> None:
        config = self._config
        if self._grpc is not None:
            await self._grpc.start()
        listener = listen(config.host, config.port, shared=config.processes > 1)
        self._http = HttpServer(self._front, listener)
        serving = self._loop.create_task(self._http.serve())
        # It returns only where it broke, or was stopped.
        serving.add_done_callback(lambda _: self._end(EXIT_DEVICE))
        self._tasks.append(serving)

    async def _open(self) -> None:
        config = self._config
        with contextlib.ExitStack() as stack:
            if self._joiners is not None and config.remote and not config.cache_dir:
                # What comes from afar comes once.
                kept = stack.enter_context(passing("hloserve-kept-"))
                config = dataclasses.replace(config, cache_dir=str(kept))
            listening = self._joined is None
            failed = await open_service(
                self._service,
                config,
                listening=listening,
                proven=functools.partial(self._proven, config),
            )
        if failed:
            self._end(failed)
            return
        self._front.hot = hot_paths(self._service, self._routes)
        self._tasks.append(self._loop.create_task(self._watch()))
        if self._board is not None:
            self._tasks.append(self._loop.create_task(self._board.keep(self._service)))
        if self._joined is not None:
            await self._listen()
            self._joined()

    async def _watch(self) -> None:
        self._end(await unfit(self._service, self._config))

    async def _proven(self, config: ServerConfig, opened: Opened) -> None:
        """Have the other processes begin, with the bundle that was proven and no other."""
        if self._joiners is not None:
            digest = f"sha256:{opened.model.bundle.digest}"
            await self._joiners.join(dataclasses.replace(config, require_digest=digest))

    def _opened(self, opening: "asyncio.Task[None]") -> None:
        if not opening.cancelled() and (error := opening.exception()) is not None:
            log.critical("the model could not be opened", exc_info=error)
            self._end(EXIT_BUNDLE)

    async def _stop(self, status: int) -> int:
        """Answer what there is, within its time; returns the exit status."""
        timeout_s = self._config.drain_timeout_s
        self._service.drain()
        try:
            async with asyncio.timeout(timeout_s):
                if self._http is not None:
                    await self._http.finish(min(GRACE_S, timeout_s / 2))
                self._service.stop()
                await self._service.drained()
                if self._grpc is not None:
                    await self._grpc.leave(self._config.drain_timeout_s)
                for task in self._tasks:
                    task.cancel()
                if self._http is not None:
                    await self._http.stop()
        except TimeoutError:
            self._service.stop()
            connections = 0 if self._http is None else self._http.unfinished()
            unanswered = self._service.abandon()
            if self._http is not None:  # their refusals go out
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REFUSALS_S):
                        await self._http.stop()
            if unanswered or connections:
                log.error(  # noqa: TRY400
                    "stopping with %d requests unanswered, %d connections open",
                    unanswered,
                    connections,
                )
                return status or EXIT_UNANSWERED
        if not status:  # else the last line is the one that says why
            log.info("stopped")
        return status

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _expect_unwritten(self) -> None:
        if self._service.loaded:
            self._service.model.bundle.expect_unwritten()

    def _lost(self, status: int) -> None:
        """End as another of the processes did."""
        self._end(status or EXIT_DEVICE)

    def _signalled(self, number: signal.Signals) -> None:
        insists, again = number in (signal.SIGTERM, signal.SIGINT), self._insisted
        self._insisted = insists or again
        if self._ended.done():
            # Further processes have theirs from the first, and from whoever signals all of them.
            if insists and again and self._joined is None:
                if self._joiners is not None:
                    self._joiners.signal(signal.SIGKILL)
                self._die(EXIT_UNANSWERED)
            return
        log.info("received %s", number.name)
        self._gently = number is not signal.SIGINT
        self._end(0)
