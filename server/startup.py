"""Startup: from a bundle to a model that is validated on this device. Runs on a separate thread.

`runtime.startup` has the steps.
"""

import asyncio
import dataclasses
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from runtime.bundle import Bundle
from runtime.device import Device, first_named, platform_of
from runtime.errors import BundleError, DeviceUnavailable, ExecutionError, GoldenMismatch
from runtime.executable_cache import ExecutableCache
from runtime.model import Model
from runtime.program import change_cpu_threads, use_sync_dispatch
from runtime.startup import Started, start
from runtime.storage.bundle_fetch import bundle_at
from server import logs
from server.batching.overlap import concurrent_batches
from server.batching.service import Service
from server.compatibility import log_compatibility
from server.config import ServerConfig
from server.storage.bundle_watch import changed

log = logging.getLogger(__name__)

EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 3, 4, 5
# Where a browser on this machine finds a server that listens on every address.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
_EXITS: tuple[tuple[type[Exception], int], ...] = (
    (GoldenMismatch, EXIT_GOLDEN),
    (DeviceUnavailable, EXIT_DEVICE),
    (ExecutionError, EXIT_DEVICE),
    (BundleError, EXIT_BUNDLE),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A model that may answer.

    Attributes:
      model: loaded, measured and validated.
      replicas: the same on further devices.
      no_batching: whether requests are never batched, since rows were found to depend on each
        other on this device.
      max_running: batches that a device is to have at once.
    """

    model: Model
    replicas: tuple[Model, ...]
    no_batching: bool
    max_running: int


class OtherThreads(Exception):
    """The model is to be loaded anew, to compute with another number of threads."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.threads = threads


class Chooser(Protocol):
    """Chooses the number of processes while the first one opens the bundle, and has the others started."""

    def recall(self, bundle: Bundle, cache: ExecutableCache | None) -> int | None:
        """Choose by what an earlier start measured, before a device is used.

        Returns:
          The number of threads that this process is to compute with; None where nothing is known.
        """

    def measure(self, model: Model, cache: ExecutableCache | None) -> None:
        """Choose by the model's programs, which are on the device and not checked yet.

        Raises:
          OtherThreads: before the others are started, where this process is to be one of several.
        """

    def start_workers(self) -> None:
        """Start the other processes, if there are to be some."""


async def open_service(
    service: Service,
    config: ServerConfig,
    *,
    listening: bool = False,
    on_loadable: Callable[[str], object] = lambda _: None,
    validated: Callable[[Opened], Awaitable[object]] | None = None,
    chooser: Chooser | None = None,
) -> int:
    """Load and validate a bundle on another thread, and begin to answer.

    Args:
      service: is opened.
      config: names the bundle; logged first.
      listening: whether this process listens on the configured addresses, which are then logged.
      on_loadable: called on the thread that loads with the bundle's digest, once workers can load
        the programs from the cache.
      validated: awaited between the validation and the first answer.
      chooser: called on the thread that loads; see `open_model`.

    Returns:
      0, or the exit status of an error, which has been reported.
    """
    log.info("configuration: %s", config)
    begin = time.monotonic()
    imports_s = _process_age_s()
    try:
        opened, started = await asyncio.to_thread(open_model, config, on_loadable, chooser)
    except Exception as error:
        known = next((status for kind, status in _EXITS if isinstance(error, kind)), None)
        if known is None:
            log.exception("opening the bundle failed")
        else:
            logs.report_fatal(config.log_format, error)
        return known or EXIT_BUNDLE
    # The loaded model stays for good, so the garbage collector need not traverse it again, and what
    # requests allocate is freed by reference counts: a threshold of 700 means a run every few requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    if validated is not None:
        await validated(opened)
    service.startup_s = {"imports": imports_s, **started.stages}
    for name, took in service.startup_s.items():
        log.info("startup: %-14s %6.2f s", name, took)
    service.open(
        opened.model,
        replicas=opened.replicas,
        no_batching=opened.no_batching,
        max_running=opened.max_running,
    )
    http, grpc, page = _addresses(config) if listening else ("serving", "", "")
    seconds = time.monotonic() - begin
    log.info("ready: %s %s%s, after %.1f s%s", http, _served(opened), grpc, seconds, page)
    return 0


async def watch_files(service: Service, config: ServerConfig) -> int:
    """Wait until a file that the model uses has changed, and refuse every request from then on.

    Args:
      service: that has been opened.
      config: has the form of the log.

    Returns:
      The exit status of the error, which has been reported.
    """
    error = await changed(service.model.bundle)
    service.fail("the model's files have changed")
    logs.report_fatal(config.log_format, error)
    return EXIT_BUNDLE


def _served(opened: Opened) -> str:
    model = opened.model
    manifest = model.manifest
    devices = [one.device_name for one in (model, *opened.replicas)]
    where = model.platform if len(devices) == 1 else f"{len(devices)} devices: {', '.join(devices)}"
    sizes = [f"{axis.name} {_listed(axis.sizes)}" for axis in model.signature.axes]
    return (
        f"{manifest.name} version {manifest.version}, "
        f"{', '.join([f'buckets {_listed(manifest.buckets)}', *sizes])}, on {where}"
    )


def _listed(sizes: Iterable[int]) -> str:
    return ",".join(map(str, sizes))


def _addresses(config: ServerConfig) -> tuple[str, str, str]:
    """Return the addresses of predictions, of gRPC, and of what a browser shows, for the log."""
    host = _in_url(config.host)
    grpc = f", gRPC on {host}:{config.grpc_port}" if config.grpc_port >= 0 else ""
    shown = f"http://{_in_url(_LOOPBACK.get(config.host, config.host))}:{config.port}"
    shown += "/" if config.page else config.health_route
    return f"http://{host}:{config.port}{config.predict_route} serves", grpc, f"; open {shown}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def open_model(
    config: ServerConfig,
    on_loadable: Callable[[str], object] = lambda _: None,
    chooser: Chooser | None = None,
) -> tuple[Opened, Started]:
    """Return a bundle's model, loaded and checked, and what was done for it.

    Args:
      config: names the bundle and the device.
      on_loadable: called with the bundle's digest once workers can load the programs from the cache.
      chooser: of the number of processes, where the configuration leaves it open.

    Raises:
      BundleError: it cannot be served here; GoldenMismatch among them, unless the
        configuration says that a warning will do.
      ExecutionError: the device failed.
    """
    use_sync_dispatch()
    cache = None
    if config.cache_dir or config.executables:
        cache = ExecutableCache(
            Path(config.cache_dir) if config.cache_dir else None,
            log.info,
            vouched=(Path(config.executables), config.executables_digest)
            if config.executables
            else None,
        )
    first = str(first_named(config.device, config.devices) or "")
    with bundle_at(config.bundle, config.cache_dir, config.require_digest, first) as bundle:
        bundle.require(config.require_digest or None)
        # In here: goldens are read from the bundle, which may be gone with the context.
        started = _Starting(bundle, config, cache, on_loadable).start(chooser)
        return _opened(started, config), started


@dataclasses.dataclass(frozen=True, slots=True)
class _Starting:
    """The start of a bundle that was opened."""

    bundle: Bundle
    config: ServerConfig
    cache: ExecutableCache | None
    on_loadable: Callable[[str], object]

    def start(self, chooser: Chooser | None) -> Started:
        isolated = not self.config.require_digest
        if chooser is None:
            return self._once(isolated=isolated)
        threads = chooser.recall(self.bundle, self.cache)
        if threads is None:
            try:
                return self._once(isolated=isolated, chooser=chooser)
            except OtherThreads as other:
                threads = other.threads
            isolated = False  # it has been
        # After the exception, which refers to the model that was measured.
        change_cpu_threads(threads)
        chooser.start_workers()
        return self._once(isolated=isolated)

    def _once(self, *, isolated: bool, chooser: Chooser | None = None) -> Started:
        def assembled(model: Model) -> None:
            if chooser is not None:
                chooser.measure(model, self.cache)
                chooser.start_workers()
                self.on_loadable(self.bundle.digest)

        return start(
            self.bundle,
            self.config.device or None,
            devices=self.config.devices,
            cache=self.cache,
            isolated=isolated,
            on_loadable=self._on_loadable if chooser is None else lambda _: None,
            on_assembled=assembled,
            progress=log.info,
        )

    def _on_loadable(self, devices: Sequence[Device]) -> None:
        processes, platform = self.config.processes, platform_of(devices[0])
        if processes > 1 and len(devices) > 1:
            raise DeviceUnavailable(
                f"processes: expected 1 with {len(devices)} devices, each of which one process has, got "
                f"{processes}"
            )
        if processes > 1 and platform != "cpu":
            raise DeviceUnavailable(
                f"processes: expected 1 on {platform}, whose memory one process has, got {processes}"
            )
        self.on_loadable(self.bundle.digest)


def _opened(started: Started, config: ServerConfig) -> Opened:
    model = started.model
    if started.failed:
        text = (
            f"{len(started.failed)} golden checks failed on this device, first: {started.failed[0]}"
        )
        if config.golden == "fail":
            raise GoldenMismatch(text)
        log.warning("%s", text)
    log_compatibility(model)
    if model.manifest.row_mixing:
        log.info("no batching: the bundle says that rows depend on each other")
    elif started.mixing:
        log.warning("no batching: rows depend on each other on this device: %s", started.mixing[0])
    no_batching = bool(model.manifest.row_mixing or started.mixing)
    # A CPU never gains by a second batch at once.
    max_running = 1 if model.platform == "cpu" else concurrent_batches(model, started.replicas)
    log.info("concurrent batches: %d%s", max_running, " on each device" * bool(started.replicas))
    model.bundle.expect_unchanged()  # what was validated is what will answer
    return Opened(model, started.replicas, no_batching, max_running)


def _process_age_s() -> float:
    """Return how long this process has run, which until now was imports; 0 if unknown."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        running = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return 0.0
    return max(0.0, running)
