"""The lifecycle of a server process: startup, signals, graceful shutdown, exit status."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import signal
from collections.abc import Callable

from runtime.scratch import temporary_directory
from server import logs, signals
from server.batching.service import Service
from server.config import AUTO, ServerConfig
from server.grpc.fronts import GrpcFront, make_front
from server.http.cors import Cors
from server.http.frontend import HttpFrontend
from server.http.listener import GRACE_S, HttpServer, listen
from server.http.routes import make_routes
from server.observability.shared_stats import SharedStats
from server.processes.count import FirstProcess, possible
from server.processes.pool import WorkerPool
from server.startup import EXIT_BUNDLE, EXIT_DEVICE, Opened, open_service, watch_files
from server.storage.bundle_watch import BusErrors

log = logging.getLogger("server")

EXIT_UNANSWERED = 1
# Time to send refusals to the requests that were not answered in time.
_REFUSALS_S = 1.0


class Process:
    """Serves until a signal, or until a failure ends it; implements `Failures`.

    The first SIGTERM drains: for the drain delay the server still accepts requests but is not
    ready, so that load balancers turn away; then it accepts no more, answers what it has, and
    exits. So do the other signals of `signals.DRAIN`; SIGINT skips the delay. A second SIGTERM or
    SIGINT exits at once.

    Of several processes the first one listens at once, and starts the workers, as soon as their number
    is known, which import while
    it opens the bundle, and load the programs once it has them, so that all check them at the same
    time. When it has, the workers may listen; when they do, it is ready. When one ends, all end.

    Args:
      config: what to serve, and where.
      exit_process: ends the process with a status, at once.
      stats: the shared statistics, of a worker.
      on_listening: of a worker; called once it listens, which it does when it can answer and
        `may_listen` was called.
    """

    def __init__(
        self,
        config: ServerConfig,
        exit_process: Callable[[int], None],
        stats: SharedStats | None = None,
        on_listening: Callable[[], object] | None = None,
    ) -> None:
        self._exit_process = exit_process
        self._on_listening = on_listening
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._may_listen: asyncio.Future[None] = self._loop.create_future()
        self._graceful = self._terminating = False
        self._service = Service(config.limits, self)
        self._config = config
        self._bus_errors = BusErrors(
            self._expect_unwritten,
            functools.partial(logs.report_fatal, config.log_format),
            functools.partial(exit_process, EXIT_BUNDLE),
        )
        self._workers: WorkerPool | None = None
        collect_stats = None
        if config.shares_ports:
            stats = stats or SharedStats(None, possible(config), 0)
            collect_stats = functools.partial(stats.collect, self._service)
            if on_listening is None:
                self._workers = WorkerPool(stats, self._on_worker_exit)
        self._stats = stats
        routes = make_routes(self._service, config, collect_stats)
        cors = Cors(config.origins)
        self._frontend = HttpFrontend(self._service, routes, config.bodies, cors)
        self._http: HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc: GrpcFront | None = None
        if config.grpc_port >= 0:
            self._grpc = make_front(self._service, config, collect_stats)

    async def serve(self) -> int:
        """Serve; return the exit status."""
        self._bus_errors.install()
        for number in (*signals.DRAIN, signal.SIGINT):
            if signals.wanted(number):
                self._loop.add_signal_handler(number, self._on_signal, number)
        if self._on_listening is None:
            await self._listen()
        opening = self._loop.create_task(self._open())
        opening.add_done_callback(self._on_opened)
        status = await self._ended
        opening.cancel()
        if self._workers is not None:
            self._workers.signal(signal.SIGTERM if self._graceful else signal.SIGINT)
        if self._graceful and self._service.loaded:
            log.info("draining: answering on for %.3g s", self._config.drain_delay_s)
            self._service.drain()
            await asyncio.sleep(self._config.drain_delay_s)
        status = await self._stop(status)
        if self._workers is not None:
            status = status or await self._workers.ended()
        return status

    def on_fatal(self, _: str) -> None:
        """Shut down, since the device is lost; see `Failures`."""
        self._end(EXIT_DEVICE)

    def on_hang(self) -> None:
        """Exit at once, since the event loop hangs in the device; see `Failures`."""
        self._exit_process(EXIT_DEVICE)

    def may_listen(self) -> None:
        """Have a worker listen once it can answer, since the first process can."""
        if not self._may_listen.done():
            self._may_listen.set_result(None)

    def parent_died(self) -> None:
        """Shut down a worker, since the first process is gone."""
        log.critical("the first process is gone")
        self._end(EXIT_DEVICE)

    async def _listen(self) -> None:
        config = self._config
        if self._grpc is not None:
            await self._grpc.start()
        listener = listen(config.host, config.port, shared=config.shares_ports)
        self._http = HttpServer(self._frontend, listener)
        serving = self._loop.create_task(self._http.serve())
        # It returns only where it broke, or was stopped.
        serving.add_done_callback(lambda _: self._end(EXIT_DEVICE))
        self._tasks.append(serving)

    async def _open(self) -> None:
        config = self._config
        with contextlib.ExitStack() as stack:
            if self._workers is not None and not config.cache_dir:
                # A remote bundle is fetched, and programs are compiled, once for all processes.
                try:
                    cache = stack.enter_context(temporary_directory("hloserve-kept-"))
                    config = dataclasses.replace(config, cache_dir=str(cache))
                except OSError:
                    if config.processes != AUTO:
                        raise
                    # Several were not asked for: without a folder each compiles by itself.
            chooser = None
            if config.processes == AUTO and self._workers is not None:
                chooser = self._chooser(config)
            elif self._workers is not None:
                self._workers.start(config)
            listening = self._on_listening is None
            failed = await open_service(
                self._service,
                config,
                listening=listening,
                on_loadable=lambda digest: self._loop.call_soon_threadsafe(
                    self._load_workers, digest
                ),
                validated=self._workers_listen,
                chooser=chooser,
            )
        if failed:
            self._end(failed)
            return
        self._tasks.append(self._loop.create_task(self._watch()))
        if self._stats is not None:
            self._tasks.append(self._loop.create_task(self._stats.publish(self._service)))
        if self._on_listening is not None:
            await self._may_listen
            await self._listen()
            self._on_listening()

    def _chooser(self, config: ServerConfig) -> FirstProcess:
        """Return what chooses the number of processes, and has the workers started that it takes.

        Args:
          config: of workers, but for the number.
        """
        workers = self._workers

        def start(processes: int) -> None:
            if workers is not None and processes > 1 and not self._ended.done():
                workers.start(dataclasses.replace(config, processes=processes))

        def on_chosen(processes: int) -> None:
            self._loop.call_soon_threadsafe(start, processes)

        return FirstProcess(possible(config), on_chosen)

    async def _watch(self) -> None:
        self._end(await watch_files(self._service, self._config))

    def _load_workers(self, digest: str) -> None:
        """Have the workers load the bundle that was test-loaded or required, and no other.

        They load what this process has compiled, and check it while this process does.
        """
        if self._workers is not None:
            self._workers.load(digest)

    async def _workers_listen(self, _: Opened) -> None:
        if self._workers is not None:
            await self._workers.listen()

    def _on_opened(self, opening: "asyncio.Task[None]") -> None:
        if not opening.cancelled() and (error := opening.exception()) is not None:
            log.critical("the model could not be opened", exc_info=error)
            self._end(EXIT_BUNDLE)

    async def _stop(self, status: int) -> int:
        """Answer the pending requests, within the drain timeout; return the exit status."""
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
            if self._http is not None:  # sends their refusals
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

    def _on_worker_exit(self, status: int) -> None:
        """End with the status of a worker that ended."""
        self._end(status or EXIT_DEVICE)

    def _on_signal(self, number: signal.Signals) -> None:
        terminates, again = number in (signal.SIGTERM, signal.SIGINT), self._terminating
        self._terminating = terminates or again
        if self._ended.done():
            # Workers get theirs from the first process, and from a sender that signals all of them.
            if terminates and again and self._on_listening is None:
                if self._workers is not None:
                    self._workers.signal(signal.SIGKILL)
                self._exit_process(EXIT_UNANSWERED)
            return
        log.info("received %s", number.name)
        self._graceful = number is not signal.SIGINT
        self._end(0)
