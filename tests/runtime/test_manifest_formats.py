"""Each thing that a manifest says belongs to the format that has it."""

import json

from pytest import mark

from runtime.entries import (
    Origin,
)
from runtime.manifest import Manifest
from tests.runtime.test_manifest import ABSENT, refusal


def test_refreshed_bundle_is_of_format_2(value):
    """
    What a bundle was refreshed from is read and written again, in the format that has it.
    """
    origin = {"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}
    refreshed = Manifest.from_bytes(
        json.dumps(value | {"format_version": 2, "refreshed_from": [origin]}).encode()
    )

    assert refreshed.refreshed_from == (Origin(sha256="0" * 64, exporter={"jax": "0.11.2"}),)
    assert Manifest.from_bytes(refreshed.to_bytes()) == refreshed
    assert json.loads(refreshed.to_bytes())["format_version"] == 2


@mark.parametrize(
    ("version", "origins", "message"),
    [
        (1, [], "unknown key 'refreshed_from' at $"),
        (2, ABSENT, "missing 'refreshed_from' at $"),
        (2, [], "expected at least one origin at $.refreshed_from"),
        (
            2,
            [{"sha256": "0", "exporter": {}}],
            "expected 64 hex digits at $.refreshed_from[0].sha256",
        ),
        (
            2,
            [{"sha256": "0" * 64, "exporter": {"jax": 1}}],
            "expected string, got int at $.refreshed_from[0].exporter.jax",
        ),
    ],
)
def test_format_2_is_for_refreshed_bundles(value, version, origins, message):
    """
    A bundle of format 1 has no origin, one of format 2 has at least one.
    """
    value |= {"format_version": version}
    if origins is not ABSENT:
        value |= {"refreshed_from": origins}

    assert refusal(json.dumps(value).encode()) == f"manifest.json: {message}"


@mark.parametrize(
    "origins", [[], [{"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}]], ids=["new", "refreshed"]
)
def test_lengths_are_of_format_3(value, origins):
    """
    A bundle with an input that is limited by an axis is written as 3, refreshed or not.
    """
    lengths = {"name": "n", "dtype": "int32", "shape": ["_"], "minimum": 1, "maximum": "seq"}
    value["signature"]["inputs"].append(lengths)
    value |= {"format_version": 3, "refreshed_from": origins}

    manifest = Manifest.from_bytes(json.dumps(value).encode())

    assert manifest.signature.inputs[-1].maximum == "seq"
    assert json.loads(manifest.to_bytes()) == value


def test_the_shortest_input_has_a_legal_length(value):
    """
    A minimum beyond the axis' own would leave the shortest inputs none.
    """
    lengths = {"name": "n", "dtype": "int32", "shape": ["_"], "minimum": 2, "maximum": "seq"}
    value["signature"]["inputs"].append(lengths)
    value |= {"format_version": 3, "refreshed_from": []}
    place = len(value["signature"]["inputs"]) - 1

    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: expected a minimum up to 1, the minimum of axis 'seq', got 2 "
        f"at $.signature.inputs[{place}].minimum"
    )


@mark.parametrize(
    "origins", [[], [{"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}]], ids=["new", "refreshed"]
)
def test_infinities_are_of_format_4(value, origins):
    """
    A bundle with an output that may be infinite is written as 4, refreshed or not.
    """
    value["signature"]["outputs"][0] |= {"dtype": "float32", "nonfinite": "infinities"}
    value |= {"format_version": 4, "refreshed_from": origins}

    manifest = Manifest.from_bytes(json.dumps(value).encode())

    assert manifest.signature.outputs[0].nonfinite == "infinities"
    assert json.loads(manifest.to_bytes()) == value


@mark.parametrize("written", ["infinities", None])
@mark.parametrize("version", [1, 3])
def test_older_formats_know_no_infinities(value, version, written):
    """
    The key is as unknown in an older format as it is to its readers, whatever its value.
    """
    value["signature"]["outputs"][0] |= {"dtype": "float32", "nonfinite": written}
    value |= {"format_version": version} | ({"refreshed_from": []} if version > 1 else {})

    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: unknown key 'nonfinite' at $.signature.outputs[0]"
    )


@mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "outputs",
            {"nonfinite": "nan"},
            "expected 'infinities', got 'nan' at $.signature.outputs[0].nonfinite",
        ),
        (
            "outputs",
            {"nonfinite": True},
            "expected string, got bool at $.signature.outputs[0].nonfinite",
        ),
        (
            "outputs",
            {"nonfinite": "infinities", "dtype": "int32"},
            "expected a floating dtype for infinities, got int32 at $.signature.outputs[0].nonfinite",
        ),
        (
            "inputs",
            {"nonfinite": "infinities", "dtype": "float32"},
            "expected no nonfinite for an input, got 'infinities' at $.signature.inputs[0].nonfinite",
        ),
    ],
)
def test_infinities_are_of_floating_outputs(value, key, change, message):
    """
    What `nonfinite` cannot be, and where it cannot be, is refused.
    """
    entry = value["signature"][key][0]
    for bound in ("minimum", "maximum", "pad"):
        entry.pop(bound, None)
    entry |= {"dtype": "float32"} | change
    value |= {"format_version": 4, "refreshed_from": []}

    assert refusal(json.dumps(value).encode()) == f"manifest.json: {message}"
