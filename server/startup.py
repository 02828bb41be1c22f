"""Startup: from a bundle to a model that is validated on this device. Runs on a separate thread.

0. a bundle without a required digest is opened in a sandbox process first
1. every program is compiled, and run until its time is known
2. every golden is checked
3. row independence is checked: one program for each combination of axis sizes
4. two concurrent batches are measured against one
"""

import asyncio
import dataclasses
import gc
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from runtime.errors import BundleError, DeviceUnavailable, ExecutionError, GoldenMismatch
from runtime.loading import load
from runtime.model import Group, Model
from runtime.program import use_sync_dispatch
from runtime.storage.bundle_fetch import bundle_at
from runtime.verify import check_goldens, check_rows
from server import logs
from server.batching.overlap import concurrent_batches
from server.batching.service import Service
from server.bundle_trust import log_compatibility, verified_in_subprocess
from server.config import ServerConfig
from server.storage.bundle_watch import changed

log = logging.getLogger(__name__)

EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 3, 4, 5
_EXITS: tuple[tuple[type[Exception], int], ...] = (
    (GoldenMismatch, EXIT_GOLDEN),
    (DeviceUnavailable, EXIT_DEVICE),
    (ExecutionError, EXIT_DEVICE),
    (BundleError, EXIT_BUNDLE),
)

# Batch size of the program whose row independence is checked: small, but with room for several
# positions and for padding.
_ROW_CHECK_BATCH = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A model that may answer.

    Attributes:
      model: loaded, measured and validated.
      no_batching: whether requests are never batched, since rows were found to depend on each
        other on this device.
      max_running: batches that the device is to have at once.
    """

    model: Model
    no_batching: bool
    max_running: int


async def open_service(
    service: Service,
    config: ServerConfig,
    *,
    listening: bool = False,
    validated: Callable[[Opened], Awaitable[object]] | None = None,
) -> int:
    """Load and validate a bundle on another thread, and begin to answer.

    Args:
      service: is opened.
      config: names the bundle; logged first.
      listening: whether this process listens on the configured addresses, which are then logged.
      validated: awaited between the validation and the first answer.

    Returns:
      0, or the exit status of an error, which has been reported.
    """
    log.info("configuration: %s", config)
    begin = time.monotonic()
    try:
        opened = await asyncio.to_thread(open_model, config)
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
    service.open(opened.model, no_batching=opened.no_batching, max_running=opened.max_running)
    http, grpc = _addresses(config) if listening else ("serving", "")
    seconds = time.monotonic() - begin
    log.info("ready: %s %s%s, after %.1f s", http, _served(opened.model), grpc, seconds)
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


def _served(model: Model) -> str:
    manifest = model.manifest
    sizes = [f"{axis.name} {_listed(axis.sizes)}" for axis in model.signature.axes]
    return (
        f"{manifest.name} version {manifest.version}, "
        f"{', '.join([f'buckets {_listed(manifest.buckets)}', *sizes])}, on {model.platform}"
    )


def _listed(sizes: Iterable[int]) -> str:
    return ",".join(map(str, sizes))


def _addresses(config: ServerConfig) -> tuple[str, str]:
    """Return the addresses of predictions and of gRPC, as the log has them."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    grpc = f", gRPC on {host}:{config.grpc_port}" if config.grpc_port >= 0 else ""
    return f"http://{host}:{config.port}{config.predict_route} serves", grpc


def open_model(config: ServerConfig) -> Opened:
    """Return a bundle's model, loaded and validated.

    Raises:
      BundleError: it cannot be served here; GoldenMismatch among them, unless the
        configuration says that a warning will do.
      ExecutionError: the device failed.
    """
    use_sync_dispatch()
    with bundle_at(config.bundle, config.cache_dir, config.require_digest, config.device) as bundle:
        with verified_in_subprocess(bundle, config):
            model = load(bundle, config.device or None, progress=log.info)
        if config.processes > 1 and model.platform != "cpu":
            raise DeviceUnavailable(
                f"processes: expected 1 on {model.platform}, whose memory one process has, got "
                f"{config.processes}"
            )
        # In here: goldens are read from the bundle, which may be gone with the context.
        return _validate(model, config)


def _validate(model: Model, config: ServerConfig) -> Opened:
    log.info("checking goldens")
    failed = [str(check) for check in check_goldens(model)[0] if not check.ok]
    if failed:
        text = f"{len(failed)} golden checks failed on this device, first: {failed[0]}"
        if config.golden == "fail":
            raise GoldenMismatch(text)
        log.warning("%s", text)
    log_compatibility(model)
    no_batching = _rows_interact(model)
    max_running = concurrent_batches(model)
    log.info("concurrent batches: %d", max_running)
    model.bundle.expect_unchanged()  # what was validated is what will answer
    return Opened(model, no_batching, max_running)


def _rows_interact(model: Model) -> bool:
    if model.manifest.row_mixing:
        log.info("no batching: the bundle says that rows depend on each other")
        return True
    for group in model.groups.values():
        sizes = ", ".join(f"{a} {s}" for a, s in zip(_axes(model), group.sizes, strict=True))
        log.info("checking row independence%s", f" at {sizes}" if sizes else "")
        mixing = check_rows(model, group, _row_check_batch(group))
        if mixing:
            log.warning("no batching: rows depend on each other on this device: %s", mixing[0])
            return True
    return False


def _axes(model: Model) -> list[str]:
    return [axis.name for axis in model.signature.axes]


def _row_check_batch(group: Group) -> int:
    return min((b for b in group.programs if b >= _ROW_CHECK_BATCH), default=max(group.programs))
