"""Bundles that are whole but wrong: contents altered, digests made to match."""

import dataclasses
import hashlib
import json
import shutil
import struct
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


def altered(bundle: Path, out: Path, changes) -> Path:
    """Copy a bundle, change files of it, and make its manifest right for them again.

    Args:
      bundle: the bundle.
      out: the copy.
      changes: path to a function from the bytes of a file to others; that of manifest.json is
        from its JSON value to nothing.
    """
    shutil.copytree(bundle, out)
    manifest = json.loads((out / MANIFEST_NAME).read_bytes())
    changes = dict(changes)
    if MANIFEST_NAME in changes:
        changes[MANIFEST_NAME](manifest)
    programs = [p[form] for p in manifest["programs"] for form in ("exported", "stablehlo")]
    goldens = [g[form] for g in manifest["goldens"] for form in ("file", "raw") if form in g]
    stages = manifest.get("preprocess", ())
    tokenizers = [stage["tokenizer"] for stage in stages if "tokenizer" in stage]
    for file in [*programs, *goldens, *tokenizers, *manifest["params"]["files"]]:
        path = out / file["path"]
        data = changes.get(file["path"], bytes)(path.read_bytes())
        path.write_bytes(data)
        file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (out / MANIFEST_NAME).write_text(json.dumps(manifest))
    return out


def expired(exported: bytes) -> bytes:
    """Make the wrapper of a program look like one of before November 2025.

    Then the number of devices was a field of 16 bits, which jax takes for the sign of a wrapper
    that is older than its window. A FlatBuffers table has an offset for each of its fields: that
    of today's becomes the older one's.
    """
    old, new = 16, 40
    data = bytearray(exported)
    (root,) = struct.unpack_from("<I", data, 0)
    table = root - struct.unpack_from("<i", data, root)[0]
    data[table + old : table + old + 2] = data[table + new : table + new + 2]
    data[table + new : table + new + 2] = bytes(2)
    return bytes(data)


# A bundle whose programs stay as they are, and one bit of a program of it that jaxlib's reader of
# StableHLO does not survive.
FROZEN = Path(__file__).parent / "data" / "bundles" / "format-1_2026-11-22"
_DEADLY_BYTE, _DEADLY_BIT = 38, 1 << 6


def deadly(exported: bytes) -> bytes:
    """Flip the bit."""
    data = bytearray(exported)
    data[data.index(b"ML\xefR") + _DEADLY_BYTE] ^= _DEADLY_BIT
    return bytes(data)


def with_deadly_program(out: Path) -> Path:
    """Copy the frozen bundle, with a program that ends the process that reads it."""
    return altered(FROZEN, out, {"programs/b1-seq4.exported": deadly})


def with_expired_programs(bundle: Path, out: Path) -> Path:
    """Copy a bundle whose every `.exported` looks too old for any jax."""
    programs = [p.exported.path for p in open_bundle(bundle).manifest.programs]
    return altered(bundle, out, dict.fromkeys(programs, expired))
