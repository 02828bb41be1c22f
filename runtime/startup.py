"""From an opened bundle to a model that is checked on this device: what a server does before ready.

1. a bundle whose digest is not required is opened in a process of its own first, once
2. programs are loaded from the cache, or compiled
3. params are put on the device
4. the startup check; the full one where this platform was not verified yet
5. run times, known or measured, to plan by
6. what was found out is kept for the next start; what was compiled already is
7. where several devices are to serve, the others get the same programs, and a startup check each

A program from the cache that fails its check is thrown away and compiled anew: a cache can cost time,
never an answer.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from runtime.bundle import Bundle
from runtime.device import (
    Device,
    cpu_model,
    find_devices,
    first_named,
    named,
)
from runtime.errors import ExecutionError
from runtime.executable_cache import ExecutableCache, seconds_of
from runtime.loading import Progress, assemble, compile_all, program_threads, release_memory
from runtime.model import Model
from runtime.probe import probing
from runtime.program import Program, cpu_threads, environment
from runtime.replicas import Copies, Replicas, naming, replicate
from runtime.startup_check import check_startup
from runtime.verify import verify


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """A model that was checked on its device, or on each of several.

    Attributes:
      model: loaded, warm, with a plan.
      replicas: the same on further devices.
      failed: golden checks that failed, the worst of what may be wrong.
      mixing: ways in which rows were seen to depend on each other, here or at an earlier start.
      full: whether all golden rows went through all programs, with all kinds of rows beside them.
      compiled: programs that were compiled; the others were loaded.
      stages: seconds by what was done, in order.
      groups: what was checked, one line for each group of programs.
    """

    model: Model
    failed: tuple[str, ...]
    mixing: tuple[str, ...]
    full: bool
    compiled: int
    stages: Mapping[str, float]
    groups: tuple[str, ...]
    replicas: tuple[Model, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    failed: tuple[str, ...]
    mixing: tuple[str, ...]
    groups: tuple[str, ...]


def start(
    bundle: Bundle,
    device: object | None = None,
    *,
    devices: str = "",
    cache: ExecutableCache | None = None,
    isolated: bool = True,
    on_loadable: Callable[[Sequence[Device]], object] = lambda _: None,
    on_assembled: Callable[[Model], object] = lambda _: None,
    progress: Progress | None = None,
) -> Started:
    """Load a bundle and check it on a device.

    Args:
      bundle: opened; whether it is the one that is wanted is the caller's to have asked.
      device: as for `runtime.load`.
      devices: which of its platform's devices serve: indexes such as "0,1", or "all"; nothing for
        that one device.
      cache: of what was compiled and found out before.
      isolated: whether a bundle that was not opened in one before is opened in a process of its
        own first.
      on_loadable: called with the devices once other processes can load the programs from the
        cache: an earlier start has kept them, or this one. They are not checked yet.
      on_assembled: called with the model once its params are on the device; not checked yet. What it
        raises ends the start.
      progress: called with a sentence for each step.

    Raises:
      BundleError: it cannot be served here.
      ExecutionError: the device failed.
    """
    progress = progress or (lambda _: None)
    stages = _Stages()
    caches = [] if cache is None else [cache]
    with contextlib.ExitStack() as stack:
        if isolated:
            with stages.timed("sandbox"):
                compiled = stack.enter_context(
                    probing(
                        bundle,
                        named(first_named(device, devices)),
                        cache=cache,
                        progress=progress,
                    )
                )
            caches += [] if compiled is None else [compiled]
        with stages.timed("programs"):
            target, *others = find_devices(device, devices)
            key = {**environment(target), "bundle": bundle.digest}
            record = {} if cache is None else cache.record(key)
            if record:  # an earlier start has kept what other processes load
                on_loadable((target, *others))
            with program_threads(target) as pool:
                programs = compile_all(
                    bundle, target, progress=progress, each=pool.map, caches=caches
                )
            if cache is not None:
                for program in programs:
                    program.keep(cache)
            # Before the sandbox's folder goes, which may be where they were loaded from.
            copies = Copies(programs if others else ())
    if not record:
        on_loadable((target, *others))
    full = not _verified_before(bundle, programs, record)
    seen_mixing = _texts(record.get("mixing"))
    with stages.timed("params"), naming(target):
        model = assemble(bundle, target, programs)
    on_assembled(model)
    name = "full check" if full else "startup check"
    with stages.timed(name), naming(target):
        model, checked, found = _checked(
            bundle, target, model, programs, full, bool(seen_mixing), progress, cache
        )
    if others and checked is not programs:
        copies = Copies(checked)
    with stages.timed("run times"):
        # Where rows mix, a program runs on goldens of its own batch alone, and perhaps on none.
        warm = not model.manifest.row_mixing
        seconds = model.measure(_known_seconds(record, target), warm=warm)
    release_memory()
    mixing = found.mixing or seen_mixing
    if cache is not None and not found.failed:
        cache.keep_record(key, _record(full, record, mixing, seconds, target))
    replicas = Replicas((), (), ())
    if others:
        with stages.timed("other devices"):
            replicas = replicate(model, copies, others, seconds, progress)
        release_memory()
    return Started(
        model,
        (*found.failed, *replicas.failed),
        (*mixing, *replicas.mixing),
        full,
        sum(program.source is None for program in checked),
        stages.seconds,
        found.groups,
        replicas.models,
    )


def _checked(
    bundle: Bundle,
    target: Device,
    model: Model,
    programs: tuple[Program, ...],
    full: bool,
    seen_mixing: bool,
    progress: Progress,
    cache: ExecutableCache | None,
) -> tuple[Model, tuple[Program, ...], _Found]:
    """Check a model; where a program was loaded and something fails, check one compiled here.

    Rows that mix are no reason where programs that were compiled here were seen to mix them before.
    """
    loaded = any(program.source is not None for program in programs)
    try:
        found = _check(model, full, progress)
    except ExecutionError:
        if not loaded:
            raise
        found = None
    if loaded and (found is None or found.failed or (found.mixing and not seen_mixing)):
        progress("a program from the cache did not pass its check; all are compiled anew")
        for program in programs:
            if cache is not None:
                cache.forget(program.key)
        with program_threads(target) as pool:
            programs = compile_all(bundle, target, progress=progress, each=pool.map)
        model = assemble(bundle, target, programs)
        found = _check(model, full, progress)
        if cache is not None and not found.failed:
            for program in programs:
                program.keep(cache)
    elif found is not None and found.failed and cache is not None:
        for program in programs:
            cache.forget(program.key)
    assert found is not None  # noqa: S101
    return model, programs, found


def _check(model: Model, full: bool, progress: Progress) -> _Found:
    if not full:
        quick = check_startup(model, progress=progress)
        return _Found(
            (*quick.preparation, *map(str, quick.mismatches)),
            tuple(map(str, quick.mixing)),
            quick.groups,
        )
    report = verify(model, progress=progress)
    mixing = () if model.manifest.row_mixing else tuple(map(str, report.mixing))
    line = f"{len(report.goldens)} golden checks, all kinds of rows beside each other"
    return _Found((*report.preparation, *map(str, report.mismatches)), mixing, (line,))


def _verified_before(
    bundle: Bundle, programs: Sequence[Program], record: Mapping[str, Any]
) -> bool:
    platform = programs[0].key.get("platform")
    return platform in bundle.manifest.verified or record.get("verified") is True


def _record(
    full: bool,
    record: Mapping[str, Any],
    mixing: tuple[str, ...],
    seconds: Mapping[str, float],
    target: Device,
) -> dict[str, Any]:
    return {
        "verified": full or record.get("verified") is True,
        "mixing": list(mixing),
        "seconds": {**_timed(record), _timed_on(target): dict(seconds)},
    }


def _timed_on(target: Device) -> str:
    """Name what run times depend on beside what a record's key says."""
    return f"{cpu_model()}, {cpu_threads()} threads" if target.platform == "cpu" else "device"


def _timed(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = record.get("seconds")
    return kept if isinstance(kept, dict) else {}


def _known_seconds(record: Mapping[str, Any], target: Device) -> dict[str, float] | None:
    kept = _timed(record).get(_timed_on(target))
    if not isinstance(kept, dict):
        return None
    read = {str(name): seconds_of(value) for name, value in kept.items()}
    return {name: value for name, value in read.items() if value is not None}


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


class _Stages:
    """Seconds by the name of what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
