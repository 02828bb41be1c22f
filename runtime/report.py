"""A verification as machines read it: JSON values, or JUnit XML."""

import math
from typing import Any
from xml.etree import ElementTree as ET

from runtime.description import columns
from runtime.device import device_kind
from runtime.model import Model
from runtime.signature import bucket_name
from runtime.startup import Started
from runtime.verify import Report


def startup(started: Started) -> dict[str, Any]:
    """Return what a start did and found, as JSON values."""
    model = started.model
    return {
        "bundle": str(model.bundle.path),
        "digest": model.bundle.digest,
        "device": f"{model.platform} ({device_kind(model.device)})",
        "ok": not started.failed and (not started.mixing or bool(model.manifest.row_mixing)),
        "check": "full" if started.full else "startup",
        "checked": list(started.groups),
        "mismatches": list(started.failed),
        "row_mixing": list(started.mixing),
        "programs": sum(len(group.programs) for group in model.groups.values()),
        "compiled": started.compiled,
        "seconds": {name: round(seconds, 3) for name, seconds in started.stages.items()},
    }


def startup_table(started: Started) -> str:
    """Write what a start did, one line for each stage."""
    found = startup(started)
    rows: list[tuple[str, ...]] = [("stage", "seconds")]
    rows += [(name, f"{seconds:.2f}") for name, seconds in started.stages.items()]
    rows.append(("all", f"{sum(started.stages.values()):.2f}"))
    head = (
        f"{'ok' if found['ok'] else 'FAILED'}: {found['check']} check on {found['device']}, "
        f"{found['programs']} programs, {found['compiled']} of them compiled"
    )
    wrong = [f"FAILED {line}" for line in (*started.failed, *started.mixing)]
    return "\n".join([head, *found["checked"], *wrong, columns(rows)])


def verification(model: Model, report: Report) -> dict[str, Any]:
    """Return a verification as JSON values; `ok` is what the exit status says.

    An error that is not finite is None, since JSON has no word for it.
    """
    errors: dict[str, float] = {}
    for check in report.goldens:
        errors[check.bucket] = max(errors.get(check.bucket, 0.0), check.comparison.max_error)
    programs = [
        {"bucket": name, **program.costs(), "max_error": _finite(errors.get(name))}
        for group in model.groups.values()
        for batch, program in group.programs.items()
        for name in [bucket_name(model.signature, group.sizes, batch)]
    ]
    mismatches = [*report.preparation, *map(str, report.mismatches)]
    mixing = [str(mixing) for mixing in report.mixing]
    return {
        "bundle": str(model.bundle.path),
        "digest": model.bundle.digest,
        "device": f"{model.platform} ({device_kind(model.device)})",
        "ok": not mismatches and (not mixing or bool(model.manifest.row_mixing)),
        "golden_checks": len(report.goldens),
        "mismatches": mismatches,
        "row_mixing": mixing,
        "drift": {name: _finite(value) for name, value in report.drift.items()},
        "programs": programs,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def junit(model: Model, report: Report) -> bytes:
    """Write a verification as JUnit XML: a case per golden check and per program's rows."""
    suite = ET.Element("testsuite", name=f"{model.manifest.name} on {model.platform}")
    failures = len(report.preparation)
    for line in report.preparation:
        case = ET.SubElement(suite, "testcase", classname="preprocess", name=line.partition(",")[0])
        ET.SubElement(case, "failure", message=line)
    for check in report.goldens:
        case = ET.SubElement(
            suite,
            "testcase",
            classname="goldens",
            name=f"{check.bucket} {check.output} {check.golden}",
        )
        if not check.ok:
            failures += 1
            ET.SubElement(case, "failure", message=str(check))
    for group in model.groups.values():
        for batch in group.programs:
            name = bucket_name(model.signature, group.sizes, batch)
            case = ET.SubElement(suite, "testcase", classname="rows", name=name)
            mixing = [str(m) for m in report.mixing if m.bucket == name]
            if mixing and not model.manifest.row_mixing:
                failures += 1
                ET.SubElement(case, "failure", message="; ".join(mixing))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(failures))
    data: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return data
