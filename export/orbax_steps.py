"""Checkpoints of Orbax: a step, bare or of several items, and directories of steps."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import CheckpointError

Tree = Any

# The files by which a checkpoint of Orbax is known.
MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding")

# Where ArrayCheckpointHandler has its one array; of a tree that is a file, if it is there.
_ARRAY = "checkpoint"


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
    """Read a step: a bare checkpoint, or what a composite one has of the model.

    Where the params are an item of their own, the model's other collections may be as well: they are
    read with it, `{"params": …, "batch_stats": …}`. Other items are left alone.

    Raises:
      CheckpointError: several items could be meant.
    """
    if (source / "_METADATA").exists() or (source / "manifest.ocdbt").exists():
        return _restore(source)
    items = {p.name: p for p in _folders(source) if (p / "_METADATA").exists()}
    named = [name for name in ("default", "params", "variables", "state", "model") if name in items]
    chosen = named[0] if named else next(iter(items)) if len(items) == 1 else None
    if chosen is None:
        raise CheckpointError(
            f"params {source}: expected one item, got {', '.join(items) or 'none'}; "
            "name the item's directory"
        )
    tree = _restore(items[chosen])
    if chosen != "params" or not isinstance(tree, dict) or chosen in tree:
        return tree
    from export.misfits import OPTIMIZER  # which imports jax: --help does without

    beside = [name for name in items if name != chosen and name not in OPTIMIZER]
    others = {name: _restore(items[name]) for name in beside}
    found = {name: other for name, other in others.items() if _is_collection(other, tree)}
    return {chosen: tree, **found} if found else tree


def _is_collection(tree: Tree, params: Mapping[str, Any]) -> bool:
    """Whether a tree is of the modules that have the params, and not a copy of these, such as their mean."""
    # Which import jax: --help does without.
    from export.matching import flatten

    return (
        isinstance(tree, dict)
        and bool(tree.keys() & params.keys())
        and flatten(tree).keys() != flatten(params).keys()
    )


def _folders(source: Path) -> list[Path]:
    return sorted(p for p in source.iterdir() if p.is_dir())


def _restore(source: Path) -> Tree:
    """Restore every array as NumPy, so that shardings of absent devices do not matter.

    What was saved as Python's own, a string or a bool, comes back as that.
    """
    import orbax.checkpoint as ocp

    path = source.absolute()
    if (source / _ARRAY).is_dir():
        array = ocp.Checkpointer(ocp.ArrayCheckpointHandler())
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        return array.restore(path, args=ocp.args.ArrayRestore(restore_args=as_numpy))
    handler = ocp.PyTreeCheckpointHandler()
    checkpointer = ocp.Checkpointer(handler)
    metadata = checkpointer.metadata(path)
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)

    def wanted(leaf: Any) -> Any:
        if isinstance(leaf, ocp.metadata.value.StringMetadata):
            return ocp.RestoreArgs(restore_type=str)
        if isinstance(leaf, ocp.metadata.value.ScalarMetadata) and leaf.dtype == np.bool_:
            return ocp.RestoreArgs(restore_type=bool)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    import jax

    args = jax.tree.map(wanted, tree)
    return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=None, restore_args=args))
