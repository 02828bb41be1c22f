"""What further devices add: the fastest program on one device, and on several at the same time."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runtime.description import columns
from runtime.device import Device
from runtime.model import Model
from runtime.replicas import Copies, replicate
from runtime.signature import bucket_name

Progress = Callable[[str], None]


def on_each(model: Model, devices: Sequence[Device], progress: Progress) -> tuple[Model, ...]:
    """Return a model on each device: itself, and replicas that were checked.

    Args:
      model: measured, on the first of the devices.
      devices: of one kind.
      progress: called with a sentence for each step.

    Raises:
      BundleError: it cannot be served on a device, which is named.
      ExecutionError: a device failed, which is named.
    """
    if len(devices) == 1:
        return (model,)
    programs = [p for group in model.groups.values() for p in group.programs.values()]
    seconds = {
        bucket_name(model.signature, sizes, batch): cost
        for sizes, group in model.groups.items()
        for batch, cost in group.planner.costs.items()
    }
    return (model, *replicate(model, Copies(programs), devices[1:], seconds, progress).models)


def scaling(models: Sequence[Model], seconds: float) -> dict[str, Any]:
    """Run the program with the most rows per second on ever more devices at the same time.

    Args:
      models: the same on each device, measured.
      seconds: for each number of devices.

    Returns:
      The bucket, and for each number of devices, which doubles up to all, the rows per second of all of
      them together and how many times one device's they are.
    """
    _, sizes, batch = max(
        (batch / cost, sizes, batch)
        for sizes, group in models[0].groups.items()
        for batch, cost in group.planner.costs.items()
    )
    found: list[dict[str, float]] = []
    for count in counts(len(models)):
        rate = batch * _runs_per_s(models[:count], sizes, batch, seconds)
        first = found[0]["rows_per_s"] if found else rate
        found.append({"devices": count, "rows_per_s": rate, "of_one": rate / first})
    name = bucket_name(models[0].signature, sizes, batch)
    return {"bucket": name, "names": [m.device_name for m in models], "at_once": found}


def counts(devices: int) -> list[int]:
    """Return 1, 2, 4 and so on, below a number of devices, and the number itself."""
    return [*(1 << power for power in range((devices - 1).bit_length())), devices]


def _runs_per_s(
    models: Sequence[Model], sizes: tuple[int, ...], batch: int, seconds: float
) -> float:
    begin = time.perf_counter()

    def repeat(model: Model) -> int:
        program, inputs = model.groups[sizes].programs[batch], model.blank(batch, sizes)
        runs = 0
        while not runs or time.perf_counter() < begin + seconds:
            model.run(program, inputs)
            runs += 1
        return runs

    with ThreadPoolExecutor(len(models)) as pool:
        runs = sum(pool.map(repeat, models))
    return runs / (time.perf_counter() - begin)


def table(found: dict[str, Any]) -> str:
    """Write what `scaling` found for people."""
    header = (f"devices with {found['bucket']}", "rows/s", "of one")
    rows = [
        (str(one["devices"]), f"{one['rows_per_s']:,.0f}", f"{one['of_one']:.2f}")
        for one in found["at_once"]
    ]
    return columns([header, *rows])
