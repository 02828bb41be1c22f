"""Which JAX releases load a bundle, as the log says it."""

import logging

from runtime.invocation import spelled
from runtime.model import Model
from runtime.promises import summary, today

log = logging.getLogger(__name__)


def log_compatibility(model: Model) -> None:
    """Log which JAX releases load the bundle, and which programs were loaded from StableHLO copies."""
    old = [
        program
        for group in model.groups.values()
        for program in group.programs.values()
        if program.fallback
    ]
    if old:
        log.warning(
            "%d programs came from .stablehlo, for jax no longer reads the others (%s); "
            "%s mends that",
            len(old),
            old[0].fallback,
            spelled("python -m runtime refresh"),
        )
    log.info("%s", summary(model.manifest, today()))
