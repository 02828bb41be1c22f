"""What a bundle holds, as people read it. Needs no jax and no device."""

from runtime.bundle import Bundle
from runtime.entries import OutputFormat
from runtime.errors import printable
from runtime.manifest import Manifest
from runtime.signature import Axis, Signature, TensorSpec


def description(bundle: Bundle) -> str:
    """Write what a bundle holds, for a person.

    Args:
      bundle: opened and checked, which is what `files` then says.
    """
    m = bundle.manifest
    facts = [
        ("model", f"{m.name} version {m.version}, exported {m.created}"),
        ("digest", bundle.digest),
        ("made with", ", ".join(f"{k} {v}" for k, v in m.exporter.items())),
        *(
            ("refreshed from", f"{o.sha256}, of jax {o.exporter.get('jax', '?')}")
            for o in m.refreshed_from
        ),
        (
            "platforms",
            f"{', '.join(m.platforms)}; verified on {', '.join(m.verified) or 'nothing'}",
        ),
        *(("input", describe_tensor(spec)) for spec in m.signature.inputs),
        *(("raw input", stage.description) for stage in m.preprocess),
        *(("passed through", name) for name in m.passthrough),
        *(("output", describe_output(spec)) for spec in m.signature.outputs),
        *(("axis", describe_axis(axis)) for axis in m.signature.axes),
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
        ("files", f"{len(m.files)}, {sum(f.bytes for f in m.files):,} B, all as recorded"),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {printable(value)}" for name, value in facts]
    header = ("program", "exported", "stablehlo", "custom calls")
    rows = [
        (
            p.exported.path.removeprefix("programs/").removesuffix(".exported"),
            f"{p.exported.bytes:,} B",
            f"{p.stablehlo.bytes:,} B",
            printable(", ".join(p.custom_calls)) or "-",
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


def describe_axis(axis: Axis) -> str:
    """Write a bucketed axis for a person."""
    least = "" if axis.minimum == 1 else f" (at least {axis.minimum})"
    return f"{axis.name} = {', '.join(map(str, axis.sizes))}{least}"


def describe_tensor(spec: TensorSpec) -> str:
    """Write a tensor for a person: name, dtype and shape, and what values may be."""
    extra = []
    if spec.minimum is not None or spec.maximum is not None:
        extra.append(f"values {spec.minimum}..{spec.maximum}")
    if any(isinstance(dim, str) for dim in spec.shape[1:]):
        extra.append("a mask" if spec.mask else f"padded with {spec.pad}")
    return f"{spec.name}: {spec}" + (f" ({', '.join(extra)})" if extra else "")


def describe_output(spec: TensorSpec) -> str:
    """Write an output for a person: name, dtype and shape, and whether it may be infinite."""
    return f"{spec.name}: {spec}" + (" (may be infinite)" if spec.nonfinite else "")


def infinite_outputs(signature: Signature) -> list[str]:
    """Return the names of the outputs that rightly hold infinities."""
    return [spec.name for spec in signature.outputs if spec.nonfinite]


def describe_format(f: OutputFormat, *, labels: bool = True) -> str:
    """Write an output format for a person, with its labels or without."""
    if f.kind == "raw":
        return "raw"
    if f.kind == "embedding":
        return f"embedding of {f.output}{' (scaled to length one)' if f.normalized else ''}"
    named = f", labels {', '.join(f.labels)}" if labels and f.labels else ""
    return f"{f.kind} of {f.output} ({f.scores}){named}"


def _params(m: Manifest) -> str:
    size = sum(file.bytes for file in m.params.files)
    return f"{len(m.params.entries)} in {len(m.params.arguments)} arguments, {size / 1e6:,.1f} MB"
