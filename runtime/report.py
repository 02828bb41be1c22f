"""What the commands print: a verification for machines, a bundle for people."""

import math
from typing import Any
from xml.etree import ElementTree as ET

from runtime.bundle import Bundle
from runtime.manifest import Manifest, OutputFormat
from runtime.model import Model
from runtime.program import device_kind
from runtime.verify import Report, bucket_name


def verification(model: Model, report: Report) -> dict[str, Any]:
    """Give a verification as JSON values; `ok` is what the exit status says.

    An error that is not finite is None, since JSON has no word for it.
    """
    errors: dict[str, float] = {}
    for check in report.goldens:
        errors[check.bucket] = max(errors.get(check.bucket, 0.0), check.comparison.max_error)
    programs = [
        {"bucket": name, **program.costs(), "max_error": _finite(errors.get(name))}
        for group in model.groups.values()
        for batch, program in group.programs.items()
        for name in [bucket_name(model, group, batch)]
    ]
    mismatches = [str(check) for check in report.mismatches]
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
    failures = 0
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
            name = bucket_name(model, group, batch)
            case = ET.SubElement(suite, "testcase", classname="rows", name=name)
            mixing = [str(m) for m in report.mixing if m.bucket == name]
            if mixing and not model.manifest.row_mixing:
                failures += 1
                ET.SubElement(case, "failure", message="; ".join(mixing))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(failures))
    data: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return data


def description(bundle: Bundle) -> str:
    """Write what a bundle holds, for a person."""
    m = bundle.manifest
    facts = [
        ("model", f"{m.name} version {m.version}, exported {m.created}"),
        ("digest", bundle.digest),
        ("made with", ", ".join(f"{k} {v}" for k, v in m.exporter.items())),
        (
            "platforms",
            f"{', '.join(m.platforms)}; verified on {', '.join(m.verified) or 'nothing'}",
        ),
        *(("input", _tensor(spec)) for spec in m.signature.inputs),
        *(("output", f"{spec.name}: {spec}") for spec in m.signature.outputs),
        *(
            ("axis", f"{axis.name} = {', '.join(map(str, axis.sizes))}")
            for axis in m.signature.axes
        ),
        ("format", describe_format(m.output_format)),
        ("64-bit types", "on" if m.x64 else "off"),
        ("matmul precision", m.matmul_precision or "default"),
        ("params", _params(m)),
        *(("drift", f"{name}: {value:.2g} between buckets") for name, value in m.drift.items()),
        *(
            ("tolerance", f"{p} {name}: {t.atol:.3g} + {t.rtol:.3g}·|expected|")
            for p, outputs in m.tolerances.items()
            for name, t in outputs.items()
        ),
        *(("rows mixed", text) for text in m.row_mixing),
        ("goldens", f"{len(m.goldens)} ({sum(g.rows for g in m.goldens)} rows)"),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    header = ("program", "exported", "stablehlo", "custom calls")
    rows = [
        (
            p.exported.path.removeprefix("programs/").removesuffix(".exported"),
            f"{p.exported.bytes:,} B",
            f"{p.stablehlo.bytes:,} B",
            ", ".join(p.custom_calls) or "-",
        )
        for p in m.programs
    ]
    return "\n".join([*lines, "", columns([header, *rows])])


def columns(rows: list[tuple[str, ...]]) -> str:
    """Lay rows out in columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _tensor(spec: Any) -> str:
    extra = []
    if spec.minimum is not None or spec.maximum is not None:
        extra.append(f"values {spec.minimum}..{spec.maximum}")
    if any(isinstance(dim, str) for dim in spec.shape[1:]):
        extra.append("a mask" if spec.mask else f"padded with {spec.pad}")
    return f"{spec.name}: {spec}" + (f" ({', '.join(extra)})" if extra else "")


def describe_format(f: OutputFormat) -> str:
    """Write an output format for a person."""
    if f.kind == "raw":
        return "raw"
    labels = f", labels {', '.join(f.labels)}" if f.labels else ""
    return f"{f.kind} of {f.output} ({f.scores}){labels}"


def _params(m: Manifest) -> str:
    size = sum(file.bytes for file in m.params.files)
    return f"{len(m.params.entries)} in {len(m.params.arguments)} arguments, {size / 1e6:,.1f} MB"
