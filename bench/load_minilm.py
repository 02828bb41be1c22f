"""What loading costs: time and peak memory, beside jax doing the same by hand.

    python -m bench.load_minilm [BUNDLE]

Each row is a process of its own. Peaks are of resident memory, above the bare import of jax.
`params alone` maps the weights and puts them on the device; `by hand` deserializes and compiles
the same programs with plain jax, reads the weights with safetensors' own reader, and calls
each program once.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.machine import heading

WAYS = ("params alone", "compile alone", "load", "by hand")


def peak_mb() -> float:
    # Not getrusage: its figure survives exec, so a child would start at its parent's peak.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def child(way: str, bundle: str) -> None:
    import time

    import jax

    before = peak_mb()
    begin = time.perf_counter()
    from runtime.bundle import open_bundle
    from runtime.device import find_device
    from runtime.loading import _arguments, load
    from runtime.program import compile_program, put

    opened = open_bundle(bundle)
    device = find_device(None)
    manifest = opened.manifest
    if way == "params alone":
        keep = put(_arguments(opened), device, x64=False)
    elif way == "compile alone":
        keep = [compile_program(opened.read, p, manifest, device) for p in manifest.programs]
    elif way == "load":
        keep = load(opened)
    else:
        keep = by_hand(opened)
    print(json.dumps({"seconds": time.perf_counter() - begin, "peak_mb": peak_mb() - before}))
    del keep, jax


def by_hand(opened) -> object:
    import jax
    import numpy as np
    from safetensors.numpy import load_file

    manifest = opened.manifest
    tensors = {}
    for file in manifest.params.files:
        tensors |= load_file(opened.path / file.path)
    params = tuple(jax.device_put(tensors[a.name]) for a in manifest.params.arguments)
    programs = []
    for entry in manifest.programs:
        exported = jax.export.deserialize(
            bytearray((opened.path / entry.exported.path).read_bytes())
        )
        inputs = tuple(
            np.zeros(s.concrete(entry.batch, entry.axes), s.dtype)
            for s in manifest.signature.inputs
        )
        compiled = jax.jit(exported.call).lower(params, inputs).compile()
        jax.block_until_ready(compiled(params, inputs))
        programs.append(compiled)
    return programs, params


def main() -> None:
    print(heading())
    with tempfile.TemporaryDirectory() as folder:
        bundle = sys.argv[1] if len(sys.argv) > 1 else export(folder)
        params = sum(f.stat().st_size for f in Path(bundle).glob("params*")) / 2**20
        print(f"params {params:.0f} MiB")
        for way in WAYS:
            command = [sys.executable, "-m", "bench.load_minilm", "--child", way, bundle]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            ratio = found["peak_mb"] / params
            print(
                f"{way:<14} {found['seconds']:6.1f} s  peak {found['peak_mb']:5.0f} MiB = {ratio:.2f} × params",
                flush=True,
            )


def export(folder: str) -> str:
    from examples.minilm.model import spec
    from export import export_model, exporting, verification

    exporting.verification.verify = lambda *_: verification.Verified(platforms=("cpu",))
    export_model(spec(), out=f"{folder}/bundle")
    return f"{folder}/bundle"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
