"""Whether a bundle may be opened in this process, and which JAX releases load it."""

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
    """Test-load a bundle in a child process, unless its digest is required, before it is opened here.

    Raises:
      BundleError: it is not the required bundle, or it ended the process that opened it.
    """
    bundle.require(config.require_digest or None)
    if config.require_digest:
        yield
        return
    log.info(
        "test-loading the bundle in a separate process, in case it is damaged; "
        "--require-digest sha256:%s skips that",
        bundle.digest,
    )
    cache = Path(config.cache_dir) if config.cache_dir else None
    with probing(bundle, config.device, remembered=cache):
        yield


def log_compatibility(model: Model) -> None:
    """Log which JAX releases load the bundle, and which programs came from StableHLO copies."""
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
