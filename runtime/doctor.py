"""`python -m runtime doctor`: does a bundle load, here and elsewhere, and for how long.

What is promised follows from dates; what happens here is tried: every program is compiled,
and every golden answered.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.claims import params_bytes
from runtime.customcalls import ALLOWED
from runtime.description import columns, infinite_outputs
from runtime.device import (
    device_kind,
    driver_versions,
    find_device,
    free_memory,
    platform_of,
)
from runtime.errors import BundleError, DeviceUnavailable, ExecutionError, printable
from runtime.golden_check import check_goldens
from runtime.loading import assemble, compile_all
from runtime.manifest import Manifest
from runtime.probe import probing
from runtime.program import Program
from runtime.program_forms import versions
from runtime.promises import CompatibilityWindow, assumed, compatibility_windows, is_known
from runtime.room import needs
from runtime.signature import bucket_name

Findings = dict[str, Any]

EXIT_OK, EXIT_UNPROMISED, EXIT_BUNDLE, EXIT_GOLDEN, EXIT_DEVICE = 0, 1, 3, 4, 5


def examine(
    bundle: Bundle,
    device: str | None,
    asked: Sequence[tuple[str, dt.date | None]],
    today: dt.date,
) -> Findings:
    """Find out what becomes of a bundle, as JSON values.

    Args:
      bundle: opened.
      device: its name, or None for JAX's default.
      asked: versions of jax to judge as well, with their build dates if these are known.
      today: from which days are counted.
    """
    manifest = bundle.manifest
    here = versions()["jax"]
    promised = compatibility_windows(manifest)
    found = {
        "bundle": str(bundle.path),
        "digest": f"sha256:{bundle.digest}",
        "model": f"{manifest.name} version {manifest.version}",
        "written_by": dict(manifest.exporter),
        "promises": [_promise(p, today) for p in promised],
        "custom_calls": _custom_calls(manifest),
        "infinite_outputs": infinite_outputs(manifest.signature),
        "platforms": list(manifest.platforms),
        "verified": list(manifest.verified),
        "jax": _judged(manifest, here, None, today),
        "asked": [_judged(manifest, version, day, today) for version, day in asked],
        **_tried(bundle, device),
    }
    return found | {"exit_status": _exit_status(found)}


def _promise(promise: CompatibilityWindow, today: dt.date) -> Findings:
    return {
        "form": promise.form,
        "written_by_jax": promise.writer,
        "first_build": str(promise.first),
        "last_build": str(promise.last),
        "days_left": promise.days_left(today),
    }


def _custom_calls(manifest: Manifest) -> list[Findings]:
    """List each custom call. JAX keeps it as long as `.exported`; StableHLO compatibility_windows none."""
    targets = sorted({target for p in manifest.programs for target in p.custom_calls})
    last = next(
        (str(p.last) for p in compatibility_windows(manifest) if p.form == "exported"), None
    )
    return [
        {
            "target": target,
            "runs": ALLOWED.get(target),
            "allowed": target in ALLOWED,
            "last_build": last,
        }
        for target in targets
    ]


def _judged(manifest: Manifest, version: str, day: dt.date | None, today: dt.date) -> Findings:
    """Return from which form a version of jax is promised to load the bundle."""
    build = day or assumed(version, today)
    forms = [
        p.form for p in compatibility_windows(manifest) if build is not None and p.covers(build)
    ]
    if any(p.custom_calls for p in manifest.programs):
        forms = [form for form in forms if form == "exported"]
    return {
        "version": version,
        "built": None if build is None else str(build),
        "build_is_known": day is not None or is_known(version),
        "promised_from": forms[0] if forms else None,
    }


def unopened(bundle: Path, error: BundleError) -> Findings:
    """Return the findings about what is no bundle, or none that this runtime reads."""
    return {
        "bundle": str(bundle),
        "loads": False,
        "error": str(error),
        "exit_status": EXIT_BUNDLE,
    }


def _tried(bundle: Bundle, wanted: str | None) -> Findings:
    """Load the bundle here and answer its goldens; return the findings.

    In another process first, so that the rest is reported for a bundle that ends it as well.
    """
    found: Findings = {"device": None, "loads": False, "error": None, "error_status": EXIT_OK}
    found |= {"programs": [], "golden_checks": 0, "mismatches": []}
    try:
        with probing(bundle, wanted or ""):
            device = find_device(wanted)
            found["device"] = {
                "platform": platform_of(device),
                "kind": device_kind(device),
                "free_bytes": free_memory(device),
                **driver_versions(device),
            }
            programs = compile_all(bundle, device, progress=lambda _: None)
        # What it needs is reported also where that turns out to be too much.
        found["programs"] = _programs(bundle.manifest, programs)
        checks, _ = check_goldens(assemble(bundle, device, programs))
    except (DeviceUnavailable, ExecutionError) as error:
        return found | {"error": str(error), "error_status": EXIT_DEVICE}
    except MemoryError as error:
        return found | {"error": f"not enough memory: {error}", "error_status": EXIT_DEVICE}
    except BundleError as error:
        return found | {"error": str(error), "error_status": EXIT_BUNDLE}
    mismatches = [str(check) for check in checks if not check.ok]
    return found | {"loads": True, "golden_checks": len(checks), "mismatches": mismatches}


def _programs(manifest: Manifest, programs: Sequence[Program]) -> list[Findings]:
    axes = [axis.name for axis in manifest.signature.axes]
    return [
        {
            "bucket": bucket_name(
                manifest.signature, [program.axes[name] for name in axes], program.batch
            ),
            "form": "stablehlo" if program.fallback else "exported",
            "why": program.fallback or None,
            "params_bytes": params_bytes(manifest),
            "needs_bytes": needs(program),
        }
        for program in programs
    ]


def _exit_status(found: Findings) -> int:
    if found["error"]:
        return int(found["error_status"])
    if found["mismatches"]:
        return EXIT_GOLDEN
    judged = [found["jax"], *found["asked"]]
    unpromised = any(judgement["promised_from"] is None for judgement in judged)
    return EXIT_UNPROMISED if unpromised else EXIT_OK


def written(found: Findings) -> str:
    """Write the findings for a person."""
    facts = [
        ("bundle", f"{found['bundle']}, {found['model']}"),
        ("digest", found["digest"]),
        ("loads here", _outcome(found)),
        *((f".{p['form']}", _window(p)) for p in found["promises"]),
        *((f"jax {j['version']}", _judgement(j)) for j in (found["jax"], *found["asked"])),
        *(("custom call", _custom_call(call)) for call in found["custom_calls"]),
        *(("may be infinite", f"output {name}") for name in found["infinite_outputs"]),
        (
            "platforms",
            f"{', '.join(found['platforms'])}; verified on {', '.join(found['verified']) or 'none'}",
        ),
        ("device", _device(found["device"])),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {printable(value)}" for name, value in facts]
    return "\n".join([*lines, *_table(found["programs"])])


def _window(promise: Findings) -> str:
    return (
        f"promised to jax builds of {promise['first_build']} to {promise['last_build']}, "
        f"{promise['days_left']} days left (by jax {promise['written_by_jax']})"
    )


def _outcome(found: Findings) -> str:
    if found["error"]:
        return f"NO: {found['error']}"
    if found["mismatches"]:
        count = len(found["mismatches"])
        return f"NO: {count} golden checks failed, first: {found['mismatches'][0]}"
    old = sum(program["form"] == "stablehlo" for program in found["programs"])
    forms = "from .exported" if not old else f"{old} programs from .stablehlo; see refresh"
    return f"yes, {forms}; {found['golden_checks']} golden checks passed"


def _judgement(judged: Findings) -> str:
    known = "built" if judged["build_is_known"] else "its build date is not known, taken for"
    day = f"{known} {judged['built']}" if judged["built"] else "older than any that reads bundles"
    form = judged["promised_from"]
    return f"{day}: " + (f"promised to load .{form}" if form else "NOT promised to load it")


def _custom_call(call: Findings) -> str:
    if not call["allowed"]:
        return f"{call['target']}: NOT one that is run"
    return (
        f"{call['target']} ({call['runs']}): kept up to jax builds of {call['last_build']}, by "
        ".exported alone"
    )


def _device(device: Findings | None) -> str:
    if device is None:
        return "none"
    free = device["free_bytes"]
    parts = [f"{device['platform']} ({device['kind']})"]
    parts += [f"{key} {device[key]}" for key in ("runtime", "driver") if key in device]
    return ", ".join([*parts, *([] if free is None else [f"{free:,} B free"])])


def _table(programs: Sequence[Findings]) -> list[str]:
    if not programs:
        return []
    header = ("program", "form", "params", "needs")
    rows = [
        (
            p["bucket"],
            p["form"],
            f"{p['params_bytes']:,} B",
            "?" if p["needs_bytes"] is None else f"{p['needs_bytes']:,} B",
        )
        for p in programs
    ]
    return ["", columns([header, *rows])]
