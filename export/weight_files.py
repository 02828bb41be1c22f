"""Weights in files: safetensors and Flax msgpack, single ones or the shards of a folder.

Folders are those that `save_pretrained` leaves: weights beside config.json, whole or in shards
that an index lists.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.errors import CheckpointError, few_names
from export.forms import nested, put
from runtime.tensors import read_tensors

Tree = Any

ACCEPTED = (
    "an Orbax or Flax checkpoint directory, a folder of save_pretrained, a Flax msgpack file, a "
    "safetensors file, or a pickle (with --allow-pickle)"
)

# How files that are no params begin.
_OTHERS = {
    b"PK\x03\x04": "a zip file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUM": "a NumPy file",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
}
# Codes of safetensors for dtypes that no bundle has.
_CODES = {
    "C64": "complex64",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
# In the order in which transformers looks: where there are several they have the same weights,
# and Flax's own have the names of Flax.
_PRETRAINED = (
    *("flax_model.msgpack", "flax_model.msgpack.index.json"),
    *("model.safetensors", "model.safetensors.index.json"),
)
_SHARD = r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.msgpack)"
_FOREIGN = (".bin", ".h5", ".pt", ".pth", ".ckpt", ".onnx", ".gguf")


def read_msgpack(source: Path) -> Tree:
    """Read what `flax.serialization.to_bytes` writes.

    Raises:
      CheckpointError: it is a file of another form.
      ValueError: it is damaged.
    """
    from flax import serialization

    data = source.read_bytes()
    other = _other_form(source, data)
    if other:
        raise CheckpointError(f"params {source}: expected {ACCEPTED}, got {other}")
    return serialization.msgpack_restore(data)


def read_safetensors(source: Path) -> Tree:
    """Read safetensors as a tree: words of names, joined by dots or slashes, are its keys.

    Raises:
      IntegrityError: it is damaged.
      ValueError: a name is both a param's and a folder's.
    """
    return nested(read_tensors(source, source.read_bytes(), more=_CODES))


def weights_in(folder: Path) -> Path | None:
    """Return the file of a folder that has its weights, or lists them; None if there is none.

    Raises:
      CheckpointError: there are several, or they are of a form that is not read.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    for name in _PRETRAINED:
        if name in names:
            return folder / name
    indexes = [
        name for name in names if name.endswith((".safetensors.index.json", ".msgpack.index.json"))
    ]
    shards = [name for name in names if re.fullmatch(_SHARD, name)]
    whole = [n for n in names if n.endswith((".msgpack", ".safetensors")) and n not in shards]
    found = indexes or whole or shards[:1]
    if len(found) > 1:
        raise CheckpointError(
            f"params {folder}: expected one file of weights, got {few_names(found)}; name the file"
        )
    foreign = [name for name in names if name.endswith(_FOREIGN)]
    if foreign and not found and "config.json" in names:
        raise CheckpointError(
            f"params {folder}: expected weights of Flax or safetensors beside config.json, got "
            f"{few_names(foreign)}; save them with save_pretrained of a Flax model, or as safetensors"
        )
    return folder / found[0] if found else None


def read_weights(source: Path) -> Tree:
    """Read a file of a folder: weights, an index of shards, or one shard together with its others.

    Raises:
      CheckpointError: a shard is absent, or does not have what the index says.
      IntegrityError: a file is damaged.
      ValueError: a file is damaged.
    """
    if source.suffix == ".json":
        return _read_sharded(source, _weight_map(source))
    shard = re.fullmatch(_SHARD, source.name)
    if shard is None:
        return _read_file(source)
    stem, _, count, suffix = shard.groups()
    names = [f"{stem}-{i:05}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
    return _merged(source, [_read_shard(source, name) for name in names])


def _read_file(source: Path) -> Tree:
    return read_msgpack(source) if source.suffix == ".msgpack" else read_safetensors(source)


def _weight_map(index: Path) -> dict[str, str]:
    """Read which shard has which param."""
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        files = set(found.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        found, files = {}, set()
    if not files or not all(isinstance(name, str) for name in files):
        raise CheckpointError(
            f"params {index}: expected an object with a weight_map of names to files, got something "
            "else"
        )
    for name in sorted(files):
        if Path(name).name != name or not name.endswith((".safetensors", ".msgpack")):
            raise CheckpointError(
                f"params {index}: expected names of .safetensors or .msgpack files beside it, got "
                f"{name!r}"
            )
    return dict(found)


def _read_sharded(index: Path, weight_map: Mapping[str, str]) -> Tree:
    shards = {name: _read_shard(index, name) for name in sorted(set(weight_map.values()))}
    separator = "/" if any("/" in name for name in weight_map) else "."
    for name, file in weight_map.items():
        here: Any = shards[file]
        for word in name.split(separator):
            here = here.get(word) if isinstance(here, Mapping) else None
        if here is None:
            raise CheckpointError(
                f"params {index}: expected {name!r} in {file}, as the index says, got none there"
            )
    return _merged(index, list(shards.values()))


def _read_shard(source: Path, name: str) -> Tree:
    path = source.parent / name
    if not path.is_file():
        raise CheckpointError(f"params {source}: expected all shards, got no {name}")
    return _read_file(path)


def _merged(source: Path, trees: Sequence[Tree]) -> Tree:
    """Put trees of different leaves together."""
    made: dict[str, Any] = {}
    for tree in trees:
        for path, leaf in _leaves(tree):
            try:
                put(made, path, leaf)
            except ValueError as error:
                raise CheckpointError(
                    f"params {source}: expected each param in one shard: {error}"
                ) from None
    return made


def _leaves(tree: Tree, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*above, str(key)))
    else:
        yield above, tree


def _other_form(source: Path, data: bytes) -> str:
    """Return what a file is that is no params in msgpack, or nothing if it may be."""
    if not data:
        return "an empty file"
    known = next((what for mark, what in _OTHERS.items() if data.startswith(mark)), "")
    if known == "a zip file":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(source) as file:
            names = file.namelist()
            if any(name.endswith("data.pkl") for name in names):
                return "a PyTorch file"
            if names and all(name.endswith(".npy") for name in names):
                return "a NumPy .npz file"
    # Params are a map: one of up to 15 keys, or with a count of 16 or 32 bits.
    is_map = 0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)
    return known if known or is_map else "a file of another form"
