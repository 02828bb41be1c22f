"""The exporter against a bare loop of jax.export over the same ten MiniLM programs.

    python -m bench.export_minilm

Both trace and serialize the same function at the same shapes, in turn. What the exporter
does beside it (reading and packing params, the bundle on disk) counts; what it does to prove
the result (goldens op by op, the fresh process) is shown apart.
"""

import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from bench.machine import heading
from examples.minilm.model import MiniLM, spec
from export import export_model, exporting, verification

ROUNDS = 5
PROOF = ("running",)


def bare(variables) -> float:
    """Export and serialize ten programs, as a script would; seconds."""
    begin = time.perf_counter()
    model = MiniLM()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)

    def function(variables, ids, mask):
        return model.apply(variables, ids, mask)

    for seq in (32, 128):
        for batch in (1, 4, 8, 16, 32):
            ids = jax.ShapeDtypeStruct((batch, seq), np.int32)
            exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda"))
            exported(shapes, ids, ids).serialize()
    return time.perf_counter() - begin


def ours(wanted, out: Path) -> tuple[float, dict[str, float]]:
    """Export a bundle without verifying it; seconds apart from proof, and by step."""
    marks: list[tuple[str, float]] = [("preparing", time.perf_counter())]
    export_model(
        wanted,
        out=out,
        overwrite=True,
        progress=lambda step: marks.append((step.split()[0], time.perf_counter())),
    )
    marks.append(("end", time.perf_counter()))
    steps: dict[str, float] = {}
    for (name, begin), (_, end) in itertools.pairwise(marks):
        steps[name] = steps.get(name, 0.0) + end - begin
    return sum(t for name, t in steps.items() if name not in PROOF), steps


def main() -> None:
    print(heading())
    exporting.verification.verify = lambda *_: verification.Verified(platforms=("cpu",))
    wanted = spec()
    folder = Path(tempfile.mkdtemp())
    try:
        pairs = []
        for i in range(ROUNDS + 1):
            jax.clear_caches()
            a = bare(wanted.params)
            jax.clear_caches()
            b, steps = ours(wanted, folder / "bundle")
            shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in steps.items())
            print(f"bare {a:.2f} s, exporter {b:.2f} s, ratio {b / a:.2f} ({shown})", flush=True)
            if i:
                pairs.append((a, b))
        files = [p for p in (folder / "bundle").rglob("*") if p.is_file()]
        total = sum(p.stat().st_size for p in files)
    finally:
        shutil.rmtree(folder)
    params = sum(a.nbytes for a in jax.tree.leaves(wanted.params))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"median ratio {ratio:.2f} (target 1.3)")
    print(f"bundle {total:,} B = params {params:,} B + {total - params:,} B (target 1,000,000)")


if __name__ == "__main__":
    main()
