"""From a bundle to a model that is proven on this device. Runs on a thread of its own.

1. every program is compiled, and run until its time is known
2. every golden is run
3. rows are checked for depending on each other: one program of each family
"""

import asyncio
import dataclasses
import gc
import logging
import sys
import time

from runtime.errors import BundleError, DeviceUnavailable, ExecutionError, GoldenMismatch
from runtime.model import Group, Model, load
from runtime.program import wait_in_place
from runtime.verify import check_goldens, check_rows
from server.config import ServerConfig
from server.service import Service

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
      alone: whether requests have to run by themselves, since rows were seen to depend on
        each other here.
    """

    model: Model
    alone: bool


async def open_service(service: Service, config: ServerConfig) -> int:
    """Load and prove a bundle on another thread, and begin to answer.

    Returns:
      0, or the exit status of what is wrong, which has been said.
    """
    begin = time.monotonic()
    try:
        opened = await asyncio.to_thread(open_model, config)
    except Exception as error:
        known = next((status for kind, status in _EXITS if isinstance(error, kind)), None)
        if known is None:
            log.exception("opening the bundle failed")
        else:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return known or EXIT_BUNDLE
    # What stays for good need not be looked through for garbage again and again.
    gc.collect()
    gc.freeze()
    service.open(opened.model, alone=opened.alone)
    log.info("%s", _ready(config, opened, time.monotonic() - begin))
    return 0


def _ready(config: ServerConfig, opened: Opened, seconds: float) -> str:
    model = opened.model
    buckets = ",".join(map(str, model.manifest.buckets))
    return (
        f"ready: http://{config.host}:{config.port}{config.predict_route} serves "
        f"{model.manifest.name} version {model.manifest.version}, buckets {buckets}, on "
        f"{model.platform}, after {seconds:.1f} s"
    )


def open_model(config: ServerConfig) -> Opened:
    """Load and prove a bundle.

    Raises:
      BundleError: it cannot be served here; GoldenMismatch among them, unless the
        configuration says that a warning will do.
      ExecutionError: the device failed.
    """
    wait_in_place()
    model = load(config.bundle, config.device or None, progress=log.info)
    log.info("checking goldens")
    failed = [str(check) for check in check_goldens(model)[0] if not check.ok]
    if failed:
        text = f"{len(failed)} golden checks failed on this device, first: {failed[0]}"
        if config.golden == "fail":
            raise GoldenMismatch(text)
        log.warning("%s", text)
    return Opened(model, alone=_rows_mix(model))


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
