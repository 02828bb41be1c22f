"""One writer for every entry of a manifest; what reading refuses is in test_manifest.py."""

import dataclasses
from collections.abc import Mapping

from pytest import mark

from runtime.entries import OutputFormat, Param
from runtime.node import Node, required, to_json
from runtime.signature import Axis, Signature, TensorSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Inner:
    size: int
    note: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Outer:
    name: str
    inners: tuple[_Inner, ...]
    by_name: Mapping[str, _Inner]
    kinds: tuple[str, ...] = required(())
    added_later: tuple[_Inner, ...] = ()


def test_entries_are_written_in_the_order_of_their_fields():
    """
    Dataclasses and mappings become objects and tuples arrays, at any depth.
    """
    outer = _Outer(
        name="a", inners=(_Inner(size=1, note="x"),), by_name={"z": _Inner(size=2)}, kinds=("k",)
    )

    assert to_json(outer) == {
        "name": "a",
        "inners": [{"size": 1, "note": "x"}],
        "by_name": {"z": {"size": 2}},
        "kinds": ["k"],
    }
    assert list(to_json(outer)) == ["name", "inners", "by_name", "kinds"]


def test_defaults_are_left_out_unless_readers_require_the_key():
    """
    A field that is added later with a default changes no manifest that does not use it.
    """
    outer = _Outer(name="a", inners=(), by_name={})

    assert to_json(outer) == {"name": "a", "inners": [], "by_name": {}, "kinds": []}
    used = dataclasses.replace(outer, added_later=(_Inner(size=3),))
    assert to_json(used)["added_later"] == [{"size": 3}]


@mark.parametrize(
    "entry",
    [
        OutputFormat(),
        Param(name="w", dtype="float32", shape=(), argument="w"),
        Axis(name="seq", sizes=(1,)),
        TensorSpec(name="x", dtype="int8", shape=("_",)),
        Signature(
            inputs=(TensorSpec(name="x", dtype="int8", shape=("_",)),),
            outputs=(TensorSpec(name="y", dtype="bool", shape=("_",)),),
        ),
    ],
    ids=lambda entry: type(entry).__name__,
)
def test_an_entry_of_defaults_is_read_back(entry):
    """
    What the writer leaves out is what reading may miss.
    """
    assert Node(to_json(entry)).whole(type(entry).from_node) == entry
