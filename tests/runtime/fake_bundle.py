"""Fake bundles: right in every file and digest, but their programs are only bytes.

Written in milliseconds and without JAX, for everything that never runs a program.
"""

from pathlib import Path

import numpy as np

from runtime.entries import (
    Argument,
    File,
    Golden,
    OutputFormat,
    Param,
    Params,
    ProgramEntry,
    Tolerance,
)
from runtime.manifest import Manifest
from runtime.signature import Axis, Signature, TensorSpec
from runtime.writer import BundleWriter

PARAMS = {"weights": np.arange(32, dtype=np.float32), "table": np.arange(6, dtype=np.int8)}
GOLDEN = {
    "input/ids": np.array([[1, 2]], np.int32),
    "input/mask": np.ones((1, 2), np.int32),
    "output/scores": np.array([[0.5, 0.25, 0.25]], np.float32),
}
FILES = [
    "golden/0.safetensors",
    "manifest.json",
    "params.safetensors",
    "programs/b1-seq2.exported",
    "programs/b1-seq2.stablehlo",
    "programs/b1-seq4.exported",
    "programs/b1-seq4.stablehlo",
    "programs/b2-seq2.exported",
    "programs/b2-seq2.stablehlo",
    "programs/b2-seq4.exported",
    "programs/b2-seq4.stablehlo",
]


def write_bundle(target: Path, *, overwrite: bool = False, version: str = "1") -> None:
    """Write a fake bundle, the way an export does."""
    with BundleWriter(target, overwrite=overwrite) as writer:
        stage(writer, version)
        writer.commit()


def stage(writer: BundleWriter, version: str = "1") -> None:
    """Write everything that belongs to a fake bundle, but do not put it in place."""
    programs = [
        ProgramEntry(
            batch=batch,
            axes={"seq": seq},
            exported=writer.write(
                f"programs/b{batch}-seq{seq}.exported", b"exported %d %d" % (batch, seq)
            ),
            stablehlo=writer.write(
                f"programs/b{batch}-seq{seq}.stablehlo", b"stablehlo %d %d" % (batch, seq)
            ),
        )
        for batch in (1, 2)
        for seq in (2, 4)
    ]
    params = writer.write_tensors("params.safetensors", PARAMS)
    golden = writer.write_tensors("golden/0.safetensors", GOLDEN)
    writer.write_manifest(manifest(programs, params, golden, version))


def manifest(
    programs: list[ProgramEntry], params: File, golden: File, version: str = "1"
) -> Manifest:
    """Describe the fake bundle."""
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), pad=1, minimum=0, maximum=9)
    mask = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True)
    scores = TensorSpec(name="scores", dtype="float32", shape=("_", 3))
    exact = {"scores": Tolerance(atol=1e-5, rtol=1e-4)}
    return Manifest(
        name="fake_bundle",
        version=version,
        created="2026-11-22T00:00:00Z",
        exporter={"hloserve": "0.1.0", "jax": "0.12.0"},
        platforms=("cpu", "cuda"),
        verified=("cpu",),
        x64=False,
        matmul_precision=None,
        signature=Signature(
            inputs=(ids, mask), outputs=(scores,), axes=(Axis(name="seq", sizes=(2, 4)),)
        ),
        buckets=(1, 2),
        output_format=OutputFormat(
            kind="classification", output="scores", labels=("red", "green", "blue")
        ),
        tolerances={"cpu": exact, "cuda": exact},
        drift={"scores": 1e-7},
        row_mixing=(),
        params=Params(
            files=(params,),
            arguments=(
                Argument(name="weights", dtype="float32", shape=(32,), file=params.path),
                Argument(name="table", dtype="int8", shape=(6,), file=params.path),
            ),
            entries=(
                Param(name="a", dtype="float32", shape=(2, 8), argument="weights"),
                Param(name="b", dtype="float32", shape=(16,), argument="weights", offset=16),
                Param(name="table", dtype="int8", shape=(6,), argument="table"),
            ),
        ),
        programs=tuple(programs),
        goldens=(Golden(axes={"seq": 2}, rows=1, file=golden),),
    )
