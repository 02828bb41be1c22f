"""The forms in which one tree of params is kept: boxed or not, nested or with flat names."""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

# Where a box, such as of `nn.with_partitioning` or an nnx.Param, keeps its array.
BOXED = "value"
_SEPARATORS = ("/", ".")


def nested(tree: Any) -> Any:
    """Return a mapping with flat names, `a/b`, `a.b` or `("a", "b")`, as the tree they spell.

    Where names have slashes, a dot is a part of the name. Any other tree is returned as it is.

    Raises:
      ValueError: a name is both an array's and a folder's.
    """
    if not isinstance(tree, Mapping) or any(map(_is_folder, tree.values())):
        return tree
    names = [name for name in tree if isinstance(name, str)]
    separator = next((s for s in _SEPARATORS if any(s in name for name in names)), None)
    if separator is None and not any(isinstance(name, tuple) for name in tree):
        return tree
    made: dict[Any, Any] = {}
    for name, leaf in tree.items():
        put(made, _words(name, separator), leaf)
    return made


def put(tree: dict[Any, Any], path: Sequence[Any], leaf: Any) -> None:
    """Put a leaf into a tree of dicts.

    Raises:
      ValueError: there is one already, or a part of its path is a leaf.
    """
    here: Any = tree
    for word in path[:-1]:
        here = here.setdefault(word, {}) if isinstance(here, dict) else None
    if not isinstance(here, dict) or path[-1] in here:
        raise ValueError(
            f"{'/'.join(map(str, path))!r} is there twice, or a part of its path is a param"
        )
    here[path[-1]] = leaf


def alternatives(tree: Any) -> Iterator[Any]:
    """Yield the other forms that a function may take this tree in: unboxed, nested, flat."""
    plain = unboxed(tree)
    if plain is not tree:
        yield plain
    inside = nested(plain)
    if inside is not plain:
        yield inside
    elif isinstance(plain, Mapping):
        for separator in _SEPARATORS:
            flat = dict(_flat(plain, separator))
            if flat.keys() != plain.keys():
                yield flat


def unboxed(tree: Any) -> Any:
    """Return a tree with each box replaced by what is in it; the same tree if it has none."""
    from flax.core import meta

    if isinstance(tree, meta.AxisMetadata):
        return unboxed(tree.unbox())
    if isinstance(tree, Mapping):
        if tree.keys() == {BOXED} and not isinstance(tree[BOXED], Mapping):
            return tree[BOXED]
        inside = {key: unboxed(value) for key, value in tree.items()}
        return inside if any(inside[key] is not tree[key] for key in tree) else tree
    if type(tree) in (list, tuple):
        items = [unboxed(item) for item in tree]
        changed = any(a is not b for a, b in zip(items, tree, strict=True))
        return type(tree)(items) if changed else tree
    return tree


def _is_folder(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() != {BOXED}


def _words(name: Hashable, separator: str | None) -> list[Any]:
    if isinstance(name, tuple):
        return list(name)
    return name.split(separator) if separator and isinstance(name, str) else [name]


def _flat(tree: Mapping[Any, Any], separator: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            for rest, leaf in _flat(value, separator):
                yield f"{key}{separator}{rest}", leaf
        else:
            yield str(key), value


def spelled(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path as the words it is made of, however they are joined."""
    return tuple(word for part in path for word in re.split(r"[./]", part))
