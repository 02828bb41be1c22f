"""Reading params, in whatever form training left them, as NumPy arrays.

To add a format, write a function from a path to a tree and name it in `_reader`.
"""

import contextlib
import dataclasses
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import CheckpointError, first_line
from export.forms import nested
from runtime.errors import nearest
from runtime.tensors import read_tensors

Tree = Any
_ORBAX_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding")


# How files that are no params begin.
_OTHERS = {
    b"PK\x03\x04": "a zip file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUM": "a NumPy file",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
}
ACCEPTED = (
    "an Orbax or Flax checkpoint directory, a Flax msgpack file, a safetensors file, or a pickle "
    "(with --allow-pickle)"
)


def read_params(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> Tree:
    """Read params from a file or directory.

    Args:
      path: an Orbax checkpoint (a step, or a directory of steps: the newest is taken), a
        `flax.training.checkpoints` directory or file, a Flax msgpack file, a
        safetensors file, or a pickle.
      allow_pickle: read a pickle, which can run any code.

    Returns:
      A tree of NumPy arrays.

    Raises:
      CheckpointError: nothing there, damaged, or of no known form.
    """
    source = Path(path)
    if "orbax-checkpoint-tmp" in str(source):
        raise CheckpointError(
            f"params {source}: expected a finished checkpoint, got one that is not"
        )
    if not source.exists():
        raise CheckpointError(
            f"params {source}: expected a file or directory, got nothing there{_beside(source)}"
        )
    reader = _reader(source, allow_pickle=allow_pickle)
    try:
        return reader(source)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"params {source}: cannot be read: {first_line(error)}") from error


def take_subtree(tree: Tree, subtree: str) -> tuple[Tree, tuple[Mapping[str, Any], ...]]:
    """Take a part of a tree by its keys, joined by `.` or `/`, such as `ema_params`.

    Returns:
      The part, and the mappings that it was taken out of, the innermost first.

    Raises:
      CheckpointError: there is no such part; names what there is.
    """
    here = as_tree(tree)
    around: list[Mapping[str, Any]] = []
    for word in re.split(r"[./]", subtree):
        keys: Mapping[str, Any] = (
            {str(k): v for k, v in here.items()}
            if isinstance(here, Mapping)
            else {str(i): v for i, v in enumerate(here)}
            if isinstance(here, list | tuple)
            else {}
        )
        if word not in keys:
            raise CheckpointError(
                f"params path {subtree!r}: expected one of {', '.join(sorted(keys)) or 'nothing'}, "
                f"got {word!r}{nearest(word, keys)}"
            )
        around.insert(0, keys)
        here = keys[word]
    return here, tuple(around)


def as_tree(params: Tree) -> Tree:
    """Return a TrainState, or another dataclass of Flax, as the tree that a checkpoint has."""
    from flax import serialization

    tree = serialization.to_state_dict(params) if dataclasses.is_dataclass(params) else params
    try:
        return nested(tree)
    except ValueError as error:
        raise CheckpointError(f"params: {error}") from None


def _reader(source: Path, *, allow_pickle: bool) -> Callable[[Path], Tree]:
    if source.is_dir():
        return _read_directory
    with source.open("rb") as f:
        head = f.read(10)
    if not head:
        return _read_msgpack  # which says so
    header = int.from_bytes(head[:8], "little")
    if source.suffix == ".safetensors" or (head[8:9] == b"{" and header < source.stat().st_size):
        return _read_safetensors
    if source.suffix in (".pkl", ".pickle") or (
        head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"
    ):
        # A msgpack map of up to 15 keys starts with 0x80 | keys; only a pickle goes on
        # with its protocol number, and a msgpack key would be a string.
        if not allow_pickle:
            raise CheckpointError(
                f"params {source}: a pickle can run any code when it is read; pass "
                "--allow-pickle if you trust where it comes from"
            )
        return _read_pickle
    return _read_msgpack


def _read_directory(source: Path) -> Tree:
    if _is_orbax(source):
        return _read_orbax(source)
    steps = _steps(source)
    if steps:
        newest = max(steps)
        chosen = steps[newest]
        return _read_orbax_step(chosen) if chosen.is_dir() else _read_msgpack(chosen)
    raise CheckpointError(
        f"params {source}: expected {ACCEPTED}, got a directory with "
        f"{', '.join(sorted(p.name for p in source.iterdir())[:5]) or 'nothing in it'}"
    )


def _steps(source: Path) -> dict[int, Path]:
    """Give the finished steps in a directory, `12`, `ckpt_12` or `checkpoint_12`."""
    found = {}
    for entry in source.iterdir():
        match = re.fullmatch(r"(?:[A-Za-z][A-Za-z0-9]*[_-])?0*(\d+)", entry.name)
        if match and (entry.is_file() or _is_orbax(entry) or any(map(_is_orbax, _folders(entry)))):
            found[int(match[1])] = entry
    return found


def _folders(source: Path) -> list[Path]:
    return sorted(p for p in source.iterdir() if p.is_dir())


def _beside(source: Path) -> str:
    """Say what there is in the place of something absent: other steps, or a like name."""
    if not source.parent.is_dir():
        return ""
    steps = sorted(_steps(source.parent)) if source.name.isdigit() else []
    if steps:
        return f"; {source.parent} has the steps {', '.join(map(str, steps))}"
    return nearest(source.name, [p.name for p in source.parent.iterdir()])


def _is_orbax(source: Path) -> bool:
    return source.is_dir() and any((source / mark).exists() for mark in _ORBAX_MARKS)


def _read_orbax(source: Path) -> Tree:
    """Read a step: a bare checkpoint, or one item of a composite one."""
    if (source / "_METADATA").exists() or (source / "manifest.ocdbt").exists():
        return _restore(source)
    return _read_orbax_step(source)


def _read_orbax_step(source: Path) -> Tree:
    if (source / "_METADATA").exists() or (source / "manifest.ocdbt").exists():
        return _restore(source)
    items = [p for p in _folders(source) if (p / "_METADATA").exists()]
    for name in ("default", "params", "state", "model"):
        for item in items:
            if item.name == name:
                return _restore(item)
    if len(items) == 1:
        return _restore(items[0])
    raise CheckpointError(
        f"params {source}: expected one item, got {', '.join(p.name for p in items) or 'none'}; "
        "name the item's directory"
    )


def _restore(source: Path) -> Tree:
    """Restore every array as NumPy, so that shardings of absent devices do not matter."""
    import jax
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    checkpointer = ocp.Checkpointer(handler)
    path = source.absolute()
    metadata = checkpointer.metadata(path)
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=None, restore_args=args))


def _read_msgpack(source: Path) -> Tree:
    from flax import serialization

    data = source.read_bytes()
    other = _other_form(source, data)
    if other:
        raise CheckpointError(f"params {source}: expected {ACCEPTED}, got {other}")
    return serialization.msgpack_restore(data)


def _other_form(source: Path, data: bytes) -> str:
    """Say what a file is that is no params in msgpack, or nothing if it may be."""
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


def _read_safetensors(source: Path) -> Tree:
    tensors = read_tensors(source, source.read_bytes())
    separator = "/" if any("/" in name for name in tensors) else "."
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *folders, leaf = name.split(separator)
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[leaf] = tensor
    return tree


def _read_pickle(source: Path) -> Tree:
    import pickle

    with source.open("rb") as f:
        return pickle.load(f)  # noqa: S301 (only behind --allow-pickle)
