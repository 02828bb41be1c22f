"""A bundle loaded and verified as fast as this machine can, by a process that does nothing else.

Programs are not timed, since nothing is planned by their times. On a CPU programs are compiled,
and their batches run, on several threads: most programs keep one core busy alone.
"""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from runtime.bundle import Bundle
from runtime.device import find_device, platform_of
from runtime.errors import DoesNotFit
from runtime.loading import Progress, assemble, compile_all
from runtime.model import Model
from runtime.preprocessing.sandbox import try_stages
from runtime.rows import Each
from runtime.verify import Report, verify

# Each thread has a batch of its own, and what the program needs for it.
_MAX_THREADS = 4


def prove(
    bundle: Bundle,
    device: object | None = None,
    *,
    independent: Collection[str] = (),
    progress: Progress,
) -> tuple[Model, Report]:
    """Load a bundle, run every golden and probe the rows of every program.

    Args:
      bundle: opened.
      device: as for `runtime.load`.
      independent: as for `runtime.verify.verify`.
      progress: called with a sentence before each slow step.

    Returns:
      The model, not measured, and what was found.

    Raises:
      BundleError: it cannot be used here.
      ExecutionError: the device failed.
    """
    try_stages(bundle)
    target = find_device(device)
    threads = 1
    if platform_of(target) == "cpu":
        threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        programs = compile_all(
            bundle, target, progress=progress, each=map if threads == 1 else pool.map
        )
        progress("loading params")
        model = assemble(bundle, target, programs)
        each: Each = pool.map if threads > 1 and _fits_in_memory(model, threads) else map
        return model, verify(model, independent=independent, progress=progress, each=each)


def _fits_in_memory(model: Model, at_once: int) -> bool:
    try:
        model.check_memory(at_once)
    except DoesNotFit:
        return False
    return True
