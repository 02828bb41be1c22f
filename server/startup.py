"""From a bundle to a model that is proven on this device. Runs on a thread of its own.

0. a bundle that nobody vouches for is opened in another process
1. every program is compiled, and run until its time is known
2. every golden is run
3. rows are checked for depending on each other: one program of each family
4. two batches at once are tried against one
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
from runtime.verify import check_goldens, check_rows
from server import logs
from server.batching.overlap import batches_at_once
from server.batching.service import Service
from server.bundle_trust import log_compatibility, verified_in_subprocess
from server.config import ServerConfig
from server.storage.bundle_fetch import bundle_at
from server.storage.bundle_watch import changed

log = logging.getLogger(__name__)

EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 3, 4, 5
_EXITS: tuple[tuple[type[Exception], int], ...] = (
    (GoldenMismatch, EXIT_GOLDEN),
    (DeviceUnavailable, EXIT_DEVICE),
    (ExecutionError, EXIT_DEVICE),
    (BundleError, EXIT_BUNDLE),
)

# Batch size of the program whose rows are checked: small, but with room for several
# positions and for padding.
_PROBED_ROWS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A model that may answer.

    Attributes:
      model: loaded and measured.
      no_batching: whether requests have to run by themselves, since rows were seen to depend on
        each other here.
      in_flight: batches that the device is to have at once.
    """

    model: Model
    no_batching: bool
    in_flight: int


async def open_service(
    service: Service,
    config: ServerConfig,
    *,
    listening: bool = False,
    proven: Callable[[Opened], Awaitable[object]] | None = None,
) -> int:
    """Load and prove a bundle on another thread, and begin to answer.

    Args:
      service: is to answer.
      config: what is logged first, and says what to load.
      listening: whether the configured addresses are this process's own, to be told.
      proven: waited for between the proof and the first answer.

    Returns:
      0, or the exit status of what is wrong, which has been said.
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
            logs.end(config.log_format, error)
        return known or EXIT_BUNDLE
    # What stays for good need not be looked through for garbage again and again, and what a
    # request makes is freed without: looking after 700 objects would mean at every few requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    if proven is not None:
        await proven(opened)
    service.open(opened.model, no_batching=opened.no_batching, in_flight=opened.in_flight)
    http, grpc = _addresses(config) if listening else ("serving", "")
    seconds = time.monotonic() - begin
    log.info("ready: %s %s%s, after %.1f s", http, _served(opened.model), grpc, seconds)
    return 0


async def unfit(service: Service, config: ServerConfig) -> int:
    """Stop answering once a file that the model uses is no longer what was checked.

    Args:
      service: that has been opened.
      config: says how the reason is told.

    Returns:
      The exit status of what is wrong, which has been said.
    """
    error = await changed(service.model.bundle)
    service.fail("the model's files have changed")
    logs.end(config.log_format, error)
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
    """Write where predictions are answered, and where gRPC is."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    grpc = f", gRPC on {host}:{config.grpc_port}" if config.grpc_port >= 0 else ""
    return f"http://{host}:{config.port}{config.predict_route} serves", grpc


def open_model(config: ServerConfig) -> Opened:
    """Load and prove a bundle.

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
        return _proven(model, config)


def _proven(model: Model, config: ServerConfig) -> Opened:
    log.info("checking goldens")
    failed = [str(check) for check in check_goldens(model)[0] if not check.ok]
    if failed:
        text = f"{len(failed)} golden checks failed on this device, first: {failed[0]}"
        if config.golden == "fail":
            raise GoldenMismatch(text)
        log.warning("%s", text)
    log_compatibility(model)
    no_batching = _rows_mix(model)
    in_flight = batches_at_once(model)
    log.info("batches at once: %d", in_flight)
    model.bundle.expect_unchanged()  # what was proven is what will answer
    return Opened(model, no_batching, in_flight)


def _rows_mix(model: Model) -> bool:
    if model.manifest.row_mixing:
        log.info("requests run alone: the bundle says that rows depend on each other")
        return True
    for group in model.groups.values():
        log.info("checking rows at %s", dict(zip(_axes(model), group.sizes, strict=True)) or "once")
        mixing = check_rows(model, group, _probed(group))
        if mixing:
            log.warning("requests run alone: rows depend on each other here: %s", mixing[0])
            return True
    return False


def _axes(model: Model) -> list[str]:
    return [axis.name for axis in model.signature.axes]


def _probed(group: Group) -> int:
    return min((b for b in group.programs if b >= _PROBED_ROWS), default=max(group.programs))
