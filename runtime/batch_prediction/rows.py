"""Rows of any origin to checked inputs, each row accepted or refused by itself.

One row that does not fit must not take others with it: where rows do not fit together they are
halved until those that do not fit by themselves are known. So whether a row is accepted never
depends on the rows beside it. Pure functions; what runs batches elsewhere can stand on them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import InvalidInput
from runtime.inputs import Checked
from runtime.model import Model
from runtime.records.arguments import exact_arrays
from runtime.records.instances import read_rows
from runtime.records.raw_rows import read_raw_rows
from runtime.tensors import Array

# Fewer rows than these are looked at one by one, once they do not fit together.
_FEW = 8
_PLACE = re.compile(r"^instances\[\d+\]: ")


class Rows(NamedTuple):
    """Rows that were checked.

    Attributes:
      parts: rows that fit, those of the same sizes together.
      members: for each part int[n], the places of its rows among all.
      refused: place of a row to what is wrong with it.
    """

    parts: tuple[Checked, ...]
    members: tuple[Array, ...]
    refused: Mapping[int, str]


def check_instances(instances: Sequence[Any], model: Model) -> Rows:
    """Check rows as JSON has them: Vertex AI's instances, texts and other raw inputs among them.

    Args:
      instances: without fields that are no inputs.
      model: that they are for.
    """
    return sift(len(instances), lambda at: _read([instances[i] for i in at], model))


def check_columns(columns: Mapping[str, Array | Sequence[Array]], rows: int, model: Model) -> Rows:
    """Check rows of tensors, as columns.

    Args:
      columns: input to its rows: an array dtype[rows, ...], or where rows differ in shape a
        sequence of arrays. int64 is taken for narrower integers where every value of a row fits.
      rows: of each column.
      model: that they are for.
    """
    ragged = {n: c for n, c in columns.items() if not isinstance(c, np.ndarray)}
    if not ragged:
        return sift(rows, lambda at: _read_arrays(_taken(columns, at), model))
    found: list[tuple[Sequence[int], Rows]] = []
    for at in _alike(list(ragged.values()), rows):
        same = {
            name: _taken({name: column}, at)[name]
            if isinstance(column, np.ndarray)
            else np.stack([column[i] for i in at])
            for name, column in columns.items()
        }

        def read(some: Sequence[int], same: Mapping[str, Array] = same) -> Read:
            return _read_arrays(_taken(same, some), model)

        found.append((at, sift(len(at), read)))
    return merge_rows(found, {})


# Parts, and for each of them the places of its rows among those that were read.
Read = tuple[Sequence[Checked], Sequence[Sequence[int] | Array]]


def merge_rows(found: Sequence[tuple[Sequence[int], Rows]], refused: Mapping[int, str]) -> Rows:
    """Return rows that were checked in several groups.

    Args:
      found: for each group, the places of its rows among all, and these rows.
      refused: rows of no group, by their place among all, and what is wrong with them.
    """
    placed = [(np.asarray(at, np.intp), rows) for at, rows in found]
    why = {int(at[i]): reason for at, rows in placed for i, reason in rows.refused.items()}
    return Rows(
        tuple(part for _, rows in placed for part in rows.parts),
        tuple(at[own] for at, rows in placed for own in rows.members),
        dict(sorted({**refused, **why}.items())),
    )


def sift(rows: int, read: Callable[[Sequence[int]], Read]) -> Rows:
    """Read rows all together, or in halves, down to each by itself.

    Args:
      rows: how many there are.
      read: reads consecutive rows, given their places; raises InvalidInput where one does not fit.
    """
    parts: list[Checked] = []
    members: list[Array] = []
    refused: dict[int, str] = {}
    left: list[Sequence[int]] = [range(rows)] if rows else []
    while left:
        at = left.pop()
        try:
            read_parts, order = read(at)
        except InvalidInput as error:
            if len(at) == 1:
                refused[at[0]] = _PLACE.sub("", str(error))
            else:
                step = 1 if len(at) <= _FEW else (len(at) + 1) // 2
                left += [at[i : i + step] for i in reversed(range(0, len(at), step))]
            continue
        parts += read_parts
        members += [np.asarray(own, np.intp) + at[0] for own in order]
    return Rows(tuple(parts), tuple(members), dict(sorted(refused.items())))


def _read(instances: list[Any], model: Model) -> Read:
    raw = read_raw_rows(instances, model)
    if raw is not None and model.preparer is not None:
        prepared = model.preparer.prepare(raw.inputs, raw.where)
        return prepared.parts, prepared.order
    parts = read_rows(instances, model)
    if len(parts) == 1:
        return parts, [range(len(instances))]
    return parts, [range(i, i + 1) for i in range(len(parts))]


def _read_arrays(columns: Mapping[str, Array], model: Model) -> Read:
    checked = model.checker.check(exact_arrays(model.signature, columns))
    return [checked], [range(checked.rows)]


def _taken(columns: Mapping[str, Any], at: Sequence[int]) -> dict[str, Array]:
    """Return consecutive rows of each column, as views."""
    if not len(at):
        return dict(columns)
    return {name: column[at[0] : at[-1] + 1] for name, column in columns.items()}


def _alike(columns: Sequence[Sequence[Array]], rows: int) -> list[list[int]]:
    """Return the rows whose arrays have the same dtypes and shapes, in the order of the first of each."""
    groups: dict[object, list[int]] = {}
    for i in range(rows):
        key = tuple((column[i].shape, column[i].dtype) for column in columns)
        groups.setdefault(key, []).append(i)
    return list(groups.values())
