"""Reading params, in whatever form training left them, as NumPy arrays.

To add a format, write a function from a path to a tree and name it in `_reader`; those there are
are in `orbax_steps` and `weight_files`.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from export.errors import CheckpointError, first_line
from export.forms import nested
from export.orbax_steps import is_orbax, read_step, steps_in
from export.weight_files import (
    ACCEPTED,
    is_shard,
    read_msgpack,
    read_safetensors,
    read_weights,
    weights_in,
)
from runtime.errors import nearest

Tree = Any


class SavedBy:
    """A file that its framework alone reads, with a model of the same form.

    Attributes:
      framework: keras or equinox.
      name: of the file.
      data: what is in it.
    """

    def __init__(self, framework: str, source: Path) -> None:
        self.framework = framework
        self.name = source.name
        self.data = source.read_bytes()


# What the files are called that a framework alone reads.
_OWN_FILES = {".weights.h5": "keras", ".eqx": "equinox"}


def read_params(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> Tree:
    """Read params from a file or directory.

    Args:
      path: an Orbax checkpoint (a step, or a directory of steps: the newest is taken), a
        `flax.training.checkpoints` directory or file, a folder of `save_pretrained`, or an
        index of its shards, a Flax msgpack file, a safetensors file, a `.weights.h5` file of Keras,
        a `.eqx` file of Equinox, or a pickle.
      allow_pickle: read a pickle, which can run any code.

    Returns:
      A tree of NumPy arrays; SavedBy where the form of the model is needed to read it.

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
    ending = next(filter(source.name.endswith, _OWN_FILES), None)
    if ending and source.is_file():
        return SavedBy(_OWN_FILES[ending], source)
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
        here = as_tree(keys[word])
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
    if source.name.endswith(".index.json") or is_shard(source):
        return read_weights
    with source.open("rb") as f:
        head = f.read(10)
    if not head:
        return read_msgpack  # which says so
    header = int.from_bytes(head[:8], "little")
    if source.suffix == ".safetensors" or (head[8:9] == b"{" and header < source.stat().st_size):
        return read_safetensors
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
    return read_msgpack


def _read_directory(source: Path) -> Tree:
    if is_orbax(source):
        return read_step(source)
    steps = steps_in(source)
    if steps:
        chosen = steps[max(steps)]
        return read_step(chosen) if chosen.is_dir() else read_msgpack(chosen)
    weights = weights_in(source)
    if weights is not None:
        return read_weights(weights)
    raise CheckpointError(
        f"params {source}: expected {ACCEPTED}, got a directory with "
        f"{', '.join(sorted(p.name for p in source.iterdir())[:5]) or 'nothing in it'}"
    )


def _beside(source: Path) -> str:
    """Return what there is in the place of something absent: other steps, or a like name."""
    if not source.parent.is_dir():
        return ""
    steps = sorted(steps_in(source.parent)) if source.name.isdigit() else []
    if steps:
        return f"; {source.parent} has the steps {', '.join(map(str, steps))}"
    return nearest(source.name, [p.name for p in source.parent.iterdir()])


def _read_pickle(source: Path) -> Tree:
    import pickle

    with source.open("rb") as f:
        return pickle.load(f)  # noqa: S301 (only behind --allow-pickle)
