"""Whether a bundle may be opened in this process, and how long it stays fit for it."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from runtime.bundle import Bundle
from runtime.model import Model
from runtime.probe import probing
from runtime.promises import summary, today
from server.config import ServerConfig

log = logging.getLogger(__name__)


@contextlib.contextmanager
def verified_in_subprocess(bundle: Bundle, config: ServerConfig) -> Iterator[None]:
    """Let a bundle in whose digest is required; any other one only once it came through a probe.

    Raises:
      BundleError: it is another bundle, or ended the process that opened it.
    """
    bundle.require(config.require_digest or None)
    if config.require_digest:
        yield
        return
    log.info(
        "opening the bundle in a process of its own first; --require-digest sha256:%s saves that",
        bundle.digest,
    )
    remembered = Path(config.cache_dir) if config.cache_dir else None
    with probing(bundle, config.device, remembered=remembered):
        yield


def log_compatibility(model: Model) -> None:
    """Log how long the bundle is promised to load, and what would not load as it was written."""
    old = [
        program
        for group in model.groups.values()
        for program in group.programs.values()
        if program.fallback
    ]
    if old:
        log.warning(
            "%d programs came from .stablehlo, for jax no longer reads the others (%s); "
            "python -m runtime refresh mends that",
            len(old),
            old[0].fallback,
        )
    log.info("%s", summary(model.manifest, today()))
