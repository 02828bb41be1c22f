"""An old bundle made new: its programs wrapped for the jax that runs, from their StableHLO alone.

Needs neither the model's source nor what it was written with. Weights, goldens and StableHLO
stay byte for byte as they were, so what is new is proven by what was recorded at export.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from runtime.bundle import Bundle
from runtime.entries import Origin, ProgramEntry
from runtime.errors import BundleError, GoldenMismatch
from runtime.loading import load
from runtime.manifest import Manifest
from runtime.program_forms import rewrap, versions
from runtime.release import version
from runtime.verify import verify
from runtime.writer import BundleWriter

Progress = Callable[[str], None]


def refresh(
    bundle: Bundle,
    out: Path,
    device: object | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle of the same programs, wrapped for the jax that runs.

    Args:
      bundle: the old one.
      out: the new one; it appears whole, once it reproduces its goldens.
      device: what they are run on, as for `load`.
      overwrite: replace a bundle that is there.
      progress: called with a sentence before each slow step.

    Returns:
      The new bundle's manifest. The same versions write the same bytes again.

    Raises:
      GoldenMismatch: the new bundle does not answer as was recorded; none is written.
      BundleError: it cannot be made, or not be proven here.
    """
    progress = progress or (lambda _: None)
    old = bundle.manifest
    if bundle.path.resolve() in out.resolve().parents:
        raise BundleError(
            f"bundle {out}: expected a directory apart from {bundle.path}, got one in it"
        )
    with BundleWriter(out, overwrite=overwrite) as writer:
        programs = []
        for entry in old.programs:
            progress(f"wrapping {entry.stablehlo.path}")
            programs.append(_rewrapped(writer, bundle, entry))
        progress("copying params and goldens")
        goldens = [file for golden in old.goldens for file in golden.files]
        stages = [file for stage in old.preprocess for file in stage.files]
        for file in (*old.params.files, *goldens, *stages):
            with bundle.opened(file) as source:
                writer.copy(file, source)
        manifest = dataclasses.replace(
            old,
            exporter={**old.exporter, **versions(), "hloserve": version()},
            programs=tuple(programs),
            verified=(),
            refreshed_from=(
                *old.refreshed_from,
                Origin(sha256=bundle.digest, exporter=old.exporter),
            ),
        )
        writer.write_manifest(manifest)
        manifest = _proven(writer.path, manifest, device, progress)
        writer.write_manifest(manifest)
        writer.commit()
    return manifest


def _rewrapped(writer: BundleWriter, bundle: Bundle, entry: ProgramEntry) -> ProgramEntry:
    artifact = bundle.read(entry.stablehlo)
    wrapped = rewrap(artifact, entry, bundle.manifest)
    return dataclasses.replace(
        entry,
        exported=writer.write(entry.exported.path, wrapped),
        stablehlo=writer.write(entry.stablehlo.path, artifact),
    )


def _proven(
    staged: Path, manifest: Manifest, device: object | None, progress: Progress
) -> Manifest:
    """Run every golden and probe rows; return the manifest with the platform they were proven on."""
    model = load(staged, device, progress=progress)
    report = verify(model, progress=progress)
    if report.preparation:
        raise GoldenMismatch(f"{report.preparation[0]}; nothing was written")
    if report.mismatches:
        raise GoldenMismatch(
            f"{len(report.mismatches)} golden checks failed on {model.platform}, first: "
            f"{report.mismatches[0]}; nothing was written"
        )
    if report.mixing and not manifest.row_mixing:
        raise BundleError(
            f"rows depend on each other here, and did not at export: {report.mixing[0]}; "
            "nothing was written"
        )
    # An unverified export has recorded none.
    drift = {n: max(manifest.drift.get(n, 0), float(f"{d:.2g}")) for n, d in report.drift.items()}
    return dataclasses.replace(manifest, verified=(model.platform,), drift=drift)
