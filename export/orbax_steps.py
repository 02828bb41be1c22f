"""Checkpoints of Orbax: a step, bare or of several items, and directories of steps."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import CheckpointError

Tree = Any

# The files by which a checkpoint of Orbax is known.
MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding")


def is_orbax(source: Path) -> bool:
    """Whether a directory is a checkpoint of Orbax."""
    return source.is_dir() and any((source / mark).exists() for mark in MARKS)


def steps_in(source: Path) -> dict[int, Path]:
    """Return the finished steps in a directory, `12`, `ckpt_12` or `checkpoint_12`, by number."""
    found = {}
    for entry in source.iterdir():
        match = re.fullmatch(r"(?:[A-Za-z][A-Za-z0-9]*[_-])?0*(\d+)", entry.name)
        if match and (entry.is_file() or is_orbax(entry) or any(map(is_orbax, _folders(entry)))):
            found[int(match[1])] = entry
    return found


def read_step(source: Path) -> Tree:
    """Read a step: a bare checkpoint, or the item of a composite one that has the params.

    Raises:
      CheckpointError: several items could be meant.
    """
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


def _folders(source: Path) -> list[Path]:
    return sorted(p for p in source.iterdir() if p.is_dir())


def _restore(source: Path) -> Tree:
    """Restore every array as NumPy, so that shardings of absent devices do not matter.

    What was saved as Python's own, a string or a bool, comes back as that.
    """
    import jax
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    checkpointer = ocp.Checkpointer(handler)
    path = source.absolute()
    metadata = checkpointer.metadata(path)
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)

    def wanted(leaf: Any) -> Any:
        if isinstance(leaf, ocp.metadata.value.StringMetadata):
            return ocp.RestoreArgs(restore_type=str)
        if isinstance(leaf, ocp.metadata.value.ScalarMetadata) and leaf.dtype == np.bool_:
            return ocp.RestoreArgs(restore_type=bool)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    args = jax.tree.map(wanted, tree)
    return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=None, restore_args=args))
