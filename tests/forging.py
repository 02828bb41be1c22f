"""Bundles that are whole but wrong: contents altered, digests made to match."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np

from runtime.bundle import open_bundle
from runtime.entries import MANIFEST_NAME, File
from runtime.tensors import write_tensors


def with_other_golden(bundle: Path, out: Path) -> Path:
    """Copy a bundle and shift the expected outputs of its first golden by one."""
    shutil.copytree(bundle, out)
    opened = open_bundle(bundle)
    golden = opened.manifest.goldens[0]
    tensors = {
        name: array + array.dtype.type(1) if name.startswith("output/") else np.array(array)
        for name, array in opened.map(golden.file).items()
    }
    path = out / golden.file.path
    with path.open("wb") as f:
        write_tensors(f, tensors)
    data = path.read_bytes()
    file = File(path=golden.file.path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    goldens = (dataclasses.replace(golden, file=file), *opened.manifest.goldens[1:])
    manifest = dataclasses.replace(opened.manifest, goldens=goldens)
    (out / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return out
