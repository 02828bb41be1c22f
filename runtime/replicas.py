"""A model on further devices of its kind: compiled once, loaded and checked on each.

Executables name no device. So the others take the first one's, in memory, and only a program that
has no bytes is compiled again. The startup check runs on each: a device that computes wrongly does so
whatever another of its kind answers.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from runtime.bundle import Bundle
from runtime.cache_files import Key
from runtime.device import Device, named
from runtime.errors import DoesNotFit, ExecutionError
from runtime.executable_cache import Executable
from runtime.executables import NotSerializable
from runtime.loading import Progress, assemble, expect_room
from runtime.model import Model
from runtime.program import Program, compile_program
from runtime.startup_check import check_startup

_MAX_THREADS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Replicas:
    """A model on further devices.

    Attributes:
      models: one for each device, warm, with the first one's plan.
      failed: golden checks that failed, each with its device's name.
      mixing: ways in which rows were seen to depend on each other, likewise.
    """

    models: tuple[Model, ...]
    failed: tuple[str, ...]
    mixing: tuple[str, ...]


class Copies:
    """Executables of programs, in memory, for further devices of their kind.

    Args:
      programs: as they were compiled, or loaded from a source that still has them.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self._executables: dict[str, Executable] = {}
        for program in programs:
            with contextlib.suppress(NotSerializable):
                self._executables[_text(program.key)] = program.executable()

    def executable(self, key: Key, threads: int) -> Executable | None:  # noqa: ARG002 (as compiled)
        """Return the program of a key; None where it has no bytes. See `ExecutableSource`."""
        return self._executables.get(_text(key))


def _text(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)


def replicate(
    model: Model,
    copies: Copies,
    devices: Sequence[Device],
    seconds: Mapping[str, float],
    progress: Progress,
) -> Replicas:
    """Load a model on further devices, all at the same time, and check it on each.

    Args:
      model: on the first device, measured.
      copies: of its programs.
      devices: further ones, of the first one's kind.
      seconds: of each program on the first, by its bucket's name.
      progress: called with a sentence for each step, on several threads.

    Raises:
      BundleError: it cannot be served on a device, which is named.
      ExecutionError: a device failed, which is named.
    """

    def load(device: Device) -> tuple[Model, list[str], list[str]]:
        name = named(device)
        with naming(device):
            expect_room(model.bundle, device)
            replica = assemble(
                model.bundle, device, _loaded(model.bundle, copies, device, progress)
            )
            report = check_startup(
                replica, progress=lambda line: progress(f"device {name}: {line}")
            )
            replica.measure(seconds, warm=not model.manifest.row_mixing)
        failed = [*report.preparation, *map(str, report.mismatches)]
        return (
            replica,
            [f"device {name}: {line}" for line in failed],
            [f"device {name}: {line}" for line in report.mixing],
        )

    with ThreadPoolExecutor(min(_MAX_THREADS, len(devices))) as pool:
        found = list(pool.map(load, devices))
    models = tuple(replica for replica, _, _ in found)
    if model.platform == "cpu":
        # Their memory is the machine's, whatever its number of devices.
        model.check_memory(at_once=1 + len(models))
    return Replicas(
        models,
        tuple(line for _, failed, _ in found for line in failed),
        tuple(line for _, _, mixing in found for line in mixing),
    )


def _loaded(
    bundle: Bundle, copies: Copies, device: Device, progress: Callable[[str], object]
) -> tuple[Program, ...]:
    manifest = bundle.manifest
    return tuple(
        compile_program(
            bundle.read,
            entry,
            manifest,
            device,
            (copies,),
            lambda path=entry.exported.path: progress(  # type: ignore[misc]
                f"device {named(device)}: compiling {path}, which cannot be copied"
            ),
        )
        for entry in manifest.programs
    )


@contextlib.contextmanager
def naming(device: Device) -> Iterator[None]:
    """Put a device's name before what it fails with."""
    try:
        yield
    except (DoesNotFit, ExecutionError) as error:
        raise type(error)(f"device {named(device)}: {error}") from error
