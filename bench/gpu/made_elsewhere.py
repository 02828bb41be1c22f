"""What XLA compiled for this card on a machine without one, beside what it compiles here."""

from pathlib import Path
from typing import Any

from runtime.accelerators import CARDS
from runtime.bundle import open_bundle
from runtime.card_report import read_report
from runtime.device import device_kind
from runtime.executables import platform_version
from runtime.model import Model
from runtime.program_forms import versions
from runtime.signature import bucket_name

_FIGURES = ("argument_bytes", "temp_bytes", "output_bytes")


def compared(model: Model, folder: Path) -> dict[str, Any]:
    """Compare the memory of programs compiled here with the report beside the bundle.

    Args:
      model: loaded here.
      folder: the bundle's directory.

    Returns:
      Why nothing is compared; or the versions of both, whether these agree, and both figures of
      each program.
    """
    report = read_report(folder, open_bundle(folder).digest)
    if report is None:
        return {
            "left out": "there is no report beside the bundle; python -m bench.gpu prepare makes one"
        }
    kind = device_kind(model.device)
    card = next((card for card in CARDS.values() if card.title == kind), None)
    programs = {} if card is None else {one.program: one for one in report.of(card)}
    if not programs:
        return {"left out": f"the report has no {kind}"}
    rows = []
    for sizes, group in model.groups.items():
        for batch, program in group.programs.items():
            name = bucket_name(model.signature, sizes, batch)
            if name not in programs:
                continue
            costs, there = program.costs(), programs[name]
            rows.append(
                {
                    "program": name,
                    **{key: [getattr(there, key), costs.get(key)] for key in _FIGURES},
                }
            )
    here = {key: versions()[key] for key in ("jax", "jaxlib")}
    return {
        "made with": dict(report.versions),
        "here": {**here, "platform": platform_version(model.device)},
        "versions agree": all(report.versions.get(key) == value for key, value in here.items()),
        "programs": rows,
    }
